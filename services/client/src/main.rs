//! `concilium-client`: see `concilium-client --help`.

use std::process::ExitCode;

use clap::Parser as _;
use concilium_client::arguments::Arguments;
use concilium_client_library::terminal;

#[tokio::main]
async fn main() -> ExitCode {
    concilium_rpc::tls::install_crypto_provider();
    terminal::log_to_standard_error();
    terminal::exit(concilium_client::run(&Arguments::parse()).await)
}
