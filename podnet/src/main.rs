//! The `podnet` command.

fn main() -> std::process::ExitCode {
    podnet::cli::run()
}
