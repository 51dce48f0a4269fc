//! The `devfleet` CLI. Everything is in the library, so that tests reach it.

#[tokio::main]
async fn main() -> std::process::ExitCode {
    devfleet_controller::cli::main().await
}
