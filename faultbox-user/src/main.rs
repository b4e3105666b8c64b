//! The `faultbox` command.

fn main() -> std::process::ExitCode {
    faultbox::cli::main()
}
