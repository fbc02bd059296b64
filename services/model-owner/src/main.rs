//! `concilium-owner`: see `concilium-owner --help`.

use std::process::ExitCode;

use clap::Parser as _;
use concilium_client_library::terminal;
use concilium_owner::arguments::Arguments;

#[tokio::main]
async fn main() -> ExitCode {
    concilium_rpc::tls::install_crypto_provider();
    terminal::log_to_standard_error();
    terminal::exit(concilium_owner::run(&Arguments::parse()).await)
}
