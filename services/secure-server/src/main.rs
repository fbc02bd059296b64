//! `concilium-server`: runs one of the three secure servers.

use std::path::PathBuf;

use clap::Parser;
use concilium_server::ServerConfig;

/// Runs one of the three secure servers until it gets Ctrl-C or a termination signal.
///
/// Three servers, run by parties that do not collude, evaluate secret-shared models on
/// secret-shared inputs. Each keeps its own privacy budget. The certificate's name, server-0,
/// server-1 or server-2, says which of the three this one is.
#[derive(Parser)]
#[command(
    version,
    after_help = "Example:\n  concilium-server --config server0.toml\n\n\
    Every key of the file can be overridden: CONCILIUM_LIMITS__BATCH_ROWS=64 sets limits.batch_rows.\n\
    RUST_LOG sets what is logged, for instance RUST_LOG=concilium_server=debug."
)]
struct Arguments {
    /// The server's configuration file.
    #[arg(long, env = "CONCILIUM_CONFIG", default_value = "server.toml")]
    config: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    concilium_server::log::start();
    let arguments = Arguments::parse();
    let config = ServerConfig::load(&arguments.config)?;
    concilium_server::run(config, concilium_server::log::stop_signal()).await
}
