//! A defect of our own is told as one and ends with its own exit code.

use std::process::{Command, ExitCode};

/// Set in the child that panics: the hook is the whole process's, so this must not happen beside other tests.
const CHILD: &str = "FAULTBOX_TEST_PANICS";

#[test]
fn a_panic_is_called_a_bug_and_exits_with_70() {
    if std::env::var_os(CHILD).is_some() {
        let exit = faultbox::cli::guard(|| panic!("the moon is not where it should be"));
        let internal = ExitCode::from(70);
        std::process::exit(if format!("{exit:?}") == format!("{internal:?}") {
            70
        } else {
            1
        });
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_panic_is_called_a_bug_and_exits_with_70",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(70));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("this is a bug in faultbox"), "{text}");
    assert!(
        text.contains("the moon is not where it should be"),
        "{text}"
    );
    assert!(text.contains("tests/cli_panic.rs:"), "{text}");
    assert!(text.contains("please report it"), "{text}");
    assert!(!text.contains("stack backtrace"), "{text}");
}
