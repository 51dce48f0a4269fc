//! `devfleet top` on a real terminal: `script` gives it one, the test types and reads along.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStdout, Command};

use super::fake::Fake;

/// Reads until the terminal has shown this; returns all that came.
async fn shown(output: &mut ChildStdout, seen: &mut String, what: &str) {
    let from = seen.len();
    let reading = async {
        let mut piece = [0; 4_096];
        while !seen[from..].contains(what) {
            let read = output.read(&mut piece).await.expect("readable");
            assert!(read > 0, "it ended before {what:?}: {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    };
    if tokio::time::timeout(Duration::from_secs(30), reading).await.is_err() {
        panic!("never shown: {what:?} in {:?}", seen.chars().take(4_000).collect::<String>());
    }
}

#[tokio::test]
async fn top_draws_on_a_terminal_takes_keys_and_leaves_it_as_it_was() {
    let fake = Fake::start().await;
    let top = fake.command(&["top", "--interval", "1s"]);
    let line = format!(
        "stty rows 24 cols 120; '{}' top --interval 1s; echo left with $?",
        top.as_std().get_program().to_string_lossy()
    );
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
    terminal.env_clear().envs(top.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
    terminal.env("TERM", "xterm-256color").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut running = terminal.spawn().expect("script runs (apt-get install bsdutils)");
    let (mut keys, mut output) = (running.stdin.take().expect("piped"), running.stdout.take().expect("piped"));
    let mut seen = String::new();
    shown(&mut output, &mut seen, "\u{1b}[?1049h").await;
    shown(&mut output, &mut seen, "PROBLEMS").await;
    keys.write_all(b"\t").await.expect("typed");
    shown(&mut output, &mut seen, "TOKENS").await;
    keys.write_all(b"q").await.expect("typed");
    shown(&mut output, &mut seen, "\u{1b}[?1049l").await;
    shown(&mut output, &mut seen, "left with 0").await;
    drop(keys);
    assert!(running.wait().await.expect("it ends").success());
}
