//! The CLI as people and scripts meet it: the real binary, a fake controller, real TLS.

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tonic::{Code, Status};

mod derive;
mod fake;
mod terminal;
mod up;

use fake::{DIGEST, Fake, JOB, Ran, TOKEN, Then, job, record, refusal};

const READS: [&[&str]; 13] = [
    &["projects", "list"],
    &["jobs", "list"],
    &["jobs", "show", "0b5e"],
    &["env", "show", "0b5e"],
    &["env", "show", "0b5e", "--report"],
    &["env", "show", "0b5e", "--dockerfile"],
    &["env", "diff", "0b5e"],
    &["diff", "0b5e"],
    &["hosts", "list"],
    &["hosts", "show", "box1"],
    &["controllers", "list"],
    &["tokens", "list"],
    &["whoami"],
];

#[tokio::test]
async fn every_command_that_reads_prints_three_formats_that_agree() {
    let fake = Fake::start().await;
    for line in READS {
        let table = fake.run(line).await;
        assert_eq!(table.code, 0, "{line:?}: {table:?}");
        assert!(!table.out.trim().is_empty(), "{line:?}");
        let json = fake.run(&[line, &["--output", "json"]].concat()).await.json();
        let yaml = fake.run(&[line, &["-o", "yaml"]].concat()).await.out;
        let read: Value = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{line:?}: {error}\n{yaml}"));
        assert_eq!(read, json, "{line:?}");
    }
}

#[tokio::test]
async fn every_command_that_changes_something_says_what_it_did() {
    let fake = Fake::start().await;
    let file = fake.dir.path().join("project.toml");
    std::fs::write(&file, "name = 'tally'").expect("written");
    let file = file.to_str().expect("text");
    let lines: [(&[&str], &str); 12] = [
        (&["projects", "apply", file], "project tally created"),
        (&["projects", "remove", "tally"], "project tally removed"),
        (&["reject", "0b5e", "--reason", "no"], "rejected"),
        (&["cancel", "0b5e"], "is being stopped"),
        (&["tokens", "revoke", "t1"], "token t1 revoked"),
        (&["sweep", "--dry-run"], "box1"),
        (&["hosts", "cordon", "box1", "--reason", "new kernel"], "box1: cordoned by ann"),
        (&["hosts", "drain", "box1", "--deadline", "10m", "--then", "wait"], "2 run; waited for"),
        (&["hosts", "uncordon", "box1"], "box1: "),
        (&["hosts", "resume", "box1"], "box1: "),
        (&["hosts", "label", "box1", "zone=eu", "old-"], "labels zone=eu"),
        (&["hosts", "remove", "box1", "--force"], "2 of its jobs start anew"),
    ];
    for (line, expected) in lines {
        let ran = fake.run(line).await;
        assert!(ran.code == 0 && ran.out.contains(expected), "{line:?}: {ran:?}");
        let json = fake.run(&[line, &["-o", "json"]].concat()).await;
        assert!(json.code == 0 && json.json().is_object(), "{line:?}: {json:?}");
    }
}

#[tokio::test]
async fn of_several_controllers_the_next_is_asked_when_one_is_away_and_a_change_is_made_once() {
    let fake = Fake::start().await;
    let text = std::fs::read_to_string(&fake.context).expect("the context");
    let line = text.lines().find(|line| line.starts_with("controller = ")).expect("a controller");
    let url = line.trim_start_matches("controller = ");
    let away = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let several = format!("controllers = [\"https://{away}\", {url}]");
    let file = fake.dir.path().join("several.toml");
    devfleet_controller::cli::context::write_private(&file, text.replace(line, &several).as_bytes()).expect("written");
    let file = file.to_str().expect("text");
    for line in [&["whoami"][..], &["cancel", "0b5e"]] {
        let ran = fake.run(&[line, &["--context-file", file]].concat()).await;
        assert_eq!(ran.code, 0, "{line:?}: {ran:?}");
    }
    let calls = fake.canned.script(|script| script.calls.clone());
    assert_eq!(calls.iter().filter(|(call, _)| *call == "Cancel").count(), 1, "{calls:?}");
    let none = text.replace(line, "controllers = []");
    let both = text.replace(line, &format!("{line}\n{several}"));
    for (wrong, told) in [(none, "must name a controller"), (both, "leave `controller` out")] {
        devfleet_controller::cli::context::write_private(std::path::Path::new(file), wrong.as_bytes())
            .expect("written");
        let ran = fake.run(&["whoami", "--context-file", file]).await;
        assert!(ran.code != 0 && ran.err.contains(told), "{ran:?}");
    }
}

#[tokio::test]
async fn every_unary_call_has_a_deadline_and_streams_have_none() {
    let fake = Fake::start().await;
    fake.canned.script(|script| script.watch = vec![(vec![job("ended", "succeeded")], None)]);
    let others: [&[&str]; 9] = [
        &["submit", "-p", "tally", "-t", "x", "--wait"],
        &["approve", "0b5e"],
        &["reject", "0b5e"],
        &["cancel", "0b5e"],
        &["logs", "0b5e"],
        &["tokens", "create", "--name", "x", "--role", "viewer"],
        &["join-token", "create"],
        &["sweep"],
        &["doctor"],
    ];
    for line in READS.iter().chain(&others) {
        fake.run(line).await;
    }
    let calls = fake.canned.script(|script| script.calls.clone());
    for (call, deadline) in &calls {
        assert_eq!(*deadline, !["WatchJob", "ReadLogs"].contains(call), "{call}");
    }
    assert!(calls.len() >= 20, "{calls:?}");
}

#[tokio::test]
async fn waiting_commands_exit_by_the_outcome() {
    let fake = Fake::start().await;
    let outcomes = [
        ("succeeded", 0),
        ("failed", 1),
        ("no-change", 10),
        ("needs-human", 11),
        ("rejected", 12),
        ("cancelled", 13),
        ("budget-exhausted", 14),
        ("lost", 15),
    ];
    for (outcome, code) in outcomes {
        let jobs = vec![job("awaiting-approval", ""), job("running", ""), job("ended", outcome)];
        fake.canned.script(|script| script.watch = vec![(jobs, None)]);
        let watched = fake.run(&["jobs", "watch", "0b5e"]).await;
        assert_eq!(watched.code, code, "{watched:?}");
        assert!(watched.out.contains("running") && watched.out.contains(outcome), "{watched:?}");
        let submitted = fake.run(&["submit", "--project", "tally", "--task", "x", "--wait", "-o", "json"]).await;
        assert_eq!(submitted.code, code, "{submitted:?}");
        assert_eq!(submitted.json()["outcome"], outcome, "one value, the job at its end");
        assert!(submitted.err.contains("devfleet approve 0b5e1d2c"), "{submitted:?}");
    }
}

#[tokio::test]
async fn watching_in_json_prints_one_value_a_line() {
    let fake = Fake::start().await;
    let jobs = vec![job("queued", ""), job("ended", "succeeded")];
    fake.canned.script(|script| script.watch = vec![(jobs, None)]);
    let ran = fake.run(&["jobs", "watch", "0b5e", "-o", "json"]).await;
    let phases: Vec<Value> =
        ran.out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["phase"].clone()).collect();
    assert_eq!(phases, ["queued", "ended"]);
}

#[tokio::test]
async fn a_watch_goes_on_after_the_controller_restarted() {
    let mut fake = Fake::start().await;
    fake.canned.script(|script| {
        script.watch = vec![
            (vec![job("queued", "")], Some(Then::Break)),
            // Early end: the job has not ended.
            (vec![job("queued", ""), job("running", "")], Some(Then::End)),
            (vec![job("running", "")], Some(Then::Hang)),
            (vec![job("ended", "succeeded")], None),
        ]
    });
    let watching = tokio::spawn(Ran::of(fake.command(&["jobs", "watch", "0b5e"])));
    let opened = fake.canned.clone();
    fake::until("the third stream", || opened.script(|s| s.watch.len() == 1).then_some(())).await;
    fake.crash().await;
    fake.resume().await;
    let ran = watching.await.expect("ended");
    assert_eq!(ran.code, 0, "{ran:?}");
    let states: Vec<&str> = ran.out.lines().filter_map(|line| line.strip_prefix("0b5e1d2c  ")).collect();
    assert_eq!(states, ["queued", "running", "succeeded"], "each change once: {ran:?}");
    assert!(
        ran.err.contains("the connection to the controller broke") && ran.err.contains("connected again"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn following_a_log_over_a_restart_repeats_and_loses_no_line() {
    let mut fake = Fake::start().await;
    let line = |n: u32| record("a3f91c20", format!("line {n}\n").as_bytes());
    fake.canned.script(|script| {
        script.logs = vec![
            ((1..=3).map(line).collect(), Some(Then::Break)),
            ((1..=5).map(line).collect(), Some(Then::Hang)),
            ((1..=8).map(line).chain([record("b0000000", b"second\n")]).collect(), Some(Then::End)),
        ]
    });
    let mut child = fake.command(&["logs", "-f", "0b5e"]).spawn().expect("started");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut seen = Vec::new();
    while seen.len() < 5 {
        seen.push(within(lines.next_line()).await.expect("read").expect("a line"));
    }
    fake.crash().await;
    fake.canned.script(|script| script.job = Some(job("ended", "succeeded")));
    fake.resume().await;
    while let Some(line) = within(lines.next_line()).await.expect("read") {
        seen.push(line);
    }
    let mut expected: Vec<String> = (1..=8).map(|n| format!("    agent | line {n}")).collect();
    expected.push("    agent | second".into());
    assert_eq!(seen, expected);
    assert!(child.wait().await.expect("ended").success());
}

#[tokio::test]
async fn a_log_is_harmless_as_text_and_exact_as_raw_bytes() {
    let fake = Fake::start().await;
    let bytes = b"bin\x00\xff \x1b[2J\r\ntail".to_vec();
    let note = v1_note("image is there");
    fake.canned.script(|script| script.logs = vec![(vec![note.clone(), record("a", &bytes)], None)]);
    let shown = fake.run(&["logs", "0b5e"]).await;
    assert!(!shown.bytes.contains(&0x1b) && !shown.bytes.contains(&0), "{shown:?}");
    assert!(shown.out.contains("devfleet | image is there") && shown.out.contains("agent | tail"), "{shown:?}");
    assert_eq!(fake.run(&["logs", "0b5e", "--raw"]).await.bytes, bytes);
    let json = fake.run(&["logs", "0b5e", "-o", "json"]).await;
    assert_eq!(json.out.lines().count(), 2, "{json:?}");
    assert_eq!(fake.run(&["logs", "0b5e", "--raw", "-o", "json"]).await.code, 2);
}

async fn within<T>(waiting: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(20), waiting).await.expect("in time")
}

fn v1_note(text: &str) -> devfleet_proto::v1::LogRecord {
    let channel = devfleet_proto::v1::log_record::Channel::Note.into();
    devfleet_proto::v1::LogRecord { source: "devfleet".into(), channel, ..record("a", text.as_bytes()) }
}

#[tokio::test]
async fn text_from_others_cannot_steer_a_terminal_but_pipes_get_files_as_they_are() {
    let fake = Fake::start().await;
    let shown = fake.run(&["jobs", "show", "0b5e"]).await;
    assert!(shown.out.contains("Fix the ␛[2Jcount") && !shown.bytes.contains(&0x1b), "{shown:?}");
    let diff = fake.run(&["diff", "0b5e"]).await;
    assert_eq!(diff.out, "--- a/x\n+++ b/x\n+\x1b[2Jnew\n", "a pipe gets the diff alone");
    assert!(diff.err.contains("No merge request is open"));
    assert_eq!(fake.run(&["env", "show", "0b5e", "--dockerfile"]).await.out, "FROM python\nRUN \x1b[1mtrue\n");
    assert_eq!(fake.run(&["env", "show", "0b5e", "--compose"]).await.out, "services: {}\n");
}

#[tokio::test]
async fn approving_without_a_terminal_approves_exactly_what_was_fetched() {
    let fake = Fake::start().await;
    for line in [vec!["approve", "0b5e"], vec!["approve", "0b5e", "--yes"], vec!["approve", "0b5e", "--digest", DIGEST]]
    {
        let ran = fake.run(&line).await;
        assert!(ran.code == 0 && ran.out.contains(DIGEST), "{ran:?}");
    }
    let approved = fake.canned.script(|script| std::mem::take(&mut script.approved));
    assert_eq!(approved, [DIGEST; 3]);
    let stale = fake.run(&["approve", "0b5e", "--digest", "sha256:old"]).await;
    assert_eq!(stale.code, 6, "{stale:?}");
    assert!(
        stale.err.contains("the proposal has changed since") && stale.err.contains("devfleet env show"),
        "{stale:?}"
    );
}

#[tokio::test]
async fn a_submission_is_repeated_with_the_same_key_when_nobody_answered() {
    let fake = Fake::start().await;
    let lost = || Status::unavailable("starting");
    fake.canned.script(|script| script.refuse.insert("Submit", vec![lost(), lost()]));
    let ran = fake.run(&["submit", "--project", "tally", "--task", "x", "--keep=30m", "-o", "json"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!((ran.json()["job"]["id"].as_str(), ran.json()["created"].as_bool()), (Some(JOB), Some(true)));
    let submitted = fake.canned.script(|script| script.submitted.clone());
    assert_eq!(submitted.len(), 3);
    assert_eq!(submitted[0].hold_seconds, 1_800);
    assert!(!submitted[0].idempotency_key.is_empty());
    assert!(submitted.iter().all(|request| *request == submitted[0]), "{submitted:?}");
}

#[tokio::test]
async fn a_change_is_not_repeated_by_itself() {
    let fake = Fake::start().await;
    fake.canned.script(|script| script.refuse.insert("Cancel", vec![Status::unavailable("starting")]));
    let ran = fake.run(&["cancel", "0b5e"]).await;
    assert_eq!(ran.code, 5, "{ran:?}");
    assert_eq!(fake.canned.script(|script| script.calls.len()), 1);
}

#[tokio::test]
async fn every_error_has_its_code_and_says_what_to_do_next() {
    let fake = Fake::start().await;
    let check = |ran: &Ran, code: i32, texts: &[&str]| {
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(ran.err.starts_with("error: ") && ran.err.contains("hint: "), "{ran:?}");
        assert!(texts.iter().all(|text| ran.err.contains(text)), "{texts:?} in {ran:?}");
        assert!(ran.out.is_empty(), "{ran:?}");
    };
    check(&fake.run(&["jobs", "show", "ffff"]).await, 3, &["no job whose id begins so", "devfleet jobs list"]);
    let refusals = [
        (refusal(Code::PermissionDenied, "ROLE_TOO_LOW", "this needs the role approver"), 4, "devfleet whoami"),
        (refusal(Code::AlreadyExists, "KEY_USED", "the key stands for another job"), 6, "another name or key"),
        (refusal(Code::Internal, "DEFECT", "the store is closed"), 1, "log"),
    ];
    for (status, code, hint) in refusals {
        let message = status.message().to_owned();
        fake.canned.script(|script| script.refuse.insert("Approve", vec![status]));
        check(&fake.run(&["approve", "0b5e"]).await, code, &[&message, hint]);
    }
    fake.write_context(&fake.authority, "dft_1_wrong");
    check(&fake.run(&["jobs", "list"]).await, 4, &["not known here", "tokens create"]);
    let (stranger, _) = fake::certificates();
    fake.write_context(&stranger, TOKEN);
    check(&fake.run(&["jobs", "list"]).await, 4, &["certificate that the context does not trust"]);
}

#[tokio::test]
async fn a_missing_context_and_a_missing_controller_are_told_apart() {
    let mut fake = Fake::start().await;
    fake.crash().await;
    let ran = fake.run(&["jobs", "list"]).await;
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(ran.err.contains(&fake.url()) && ran.err.contains("devfleet up"), "{ran:?}");
    assert!(ran.err.contains("Connection refused"), "the cause is named: {ran:?}");
    std::fs::remove_file(&fake.context).expect("removed");
    let ran = fake.run(&["jobs", "list"]).await;
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.err.contains("devfleet up") && ran.err.contains("DEVFLEET_CONTEXT"), "{ran:?}");
}

#[tokio::test]
async fn a_context_that_others_may_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let fake = Fake::start().await;
    std::fs::set_permissions(&fake.context, std::fs::Permissions::from_mode(0o644)).expect("changed");
    let ran = fake.run(&["jobs", "list"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("chmod 600"), "{ran:?}");
    assert!(fake.canned.script(|script| script.calls.is_empty()), "nothing was sent");
}

#[tokio::test]
async fn wrong_usage_is_explained() {
    let fake = Fake::start().await;
    let lines: [(&[&str], &str); 7] = [
        (&["lgos"], "similar subcommand exists: 'logs'"),
        (&["submit", "--project", "x"], "--task <TEXT>"),
        (&["submit", "--project", "x", "--task", " "], "the task is empty"),
        (&["submit", "--project", "x", "--task-file", "/none"], "cannot read /none"),
        (&["submit", "--project", "x", "--task", "x", "--keep=soon"], "write 90s, 15m"),
        (&["approve", "x", "--yes", "--digest", "y"], "cannot be used with"),
        (&["jobs", "list", "--output", "xml"], "possible values: table, json, yaml"),
    ];
    for (line, expected) in lines {
        let ran = fake.run(line).await;
        assert!(ran.code == if line.contains(&"/none") { 1 } else { 2 }, "{ran:?}");
        assert!(ran.err.contains(expected), "{line:?}: {ran:?}");
    }
    let alone = fake.run(&[]).await;
    assert!(alone.err.contains("devfleet up") && alone.err.contains("Usage: devfleet"), "{alone:?}");
    assert!(fake.run(&["--help"]).await.out.contains("Exit codes:"));
}

#[tokio::test]
async fn a_new_token_is_all_that_standard_output_holds() {
    let fake = Fake::start().await;
    let created = fake.run(&["tokens", "create", "--name", "ci", "--role", "submitter", "--ttl", "30d"]).await;
    assert_eq!(created.out, "dft_t2_new\n");
    assert!(created.err.contains("only time"), "{created:?}");
    let join = fake.run(&["join-token", "create"]).await;
    assert_eq!(join.out, "dfj_joincanary\n");
    assert!(join.err.contains("DEVFLEET_JOIN_TOKEN"), "{join:?}");
}

#[tokio::test]
async fn our_own_token_is_never_printed() {
    let fake = Fake::start().await;
    for line in READS.iter().chain(&[["doctor"].as_slice()]) {
        for format in ["table", "json"] {
            let ran = fake.run(&[line, ["-o", format].as_slice()].concat()).await;
            assert!(!ran.out.contains("canary") && !ran.err.contains("canary"), "{line:?}: {ran:?}");
        }
    }
}

#[tokio::test]
async fn doctor_shows_this_machine_and_the_fleet_and_fails_when_something_is_wrong() {
    let fake = Fake::start().await;
    let mut command = fake.command(&["doctor"]);
    command.env("DOCKER_HOST", "unix:///none/docker.sock");
    let ran = Ran::of(command).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    for text in ["(mode 600)", "systemctl start docker", "answers; you are ann (operator)", "full: free some room"] {
        assert!(ran.out.contains(text), "{text}: {ran:?}");
    }
}

#[tokio::test]
async fn a_reader_that_leaves_early_is_no_error() {
    let fake = Fake::start().await;
    let many = (0..20_000).map(|n| record("a", format!("line {n}\n").as_bytes())).collect();
    fake.canned.script(|script| script.logs = vec![(many, None)]);
    let mut child = fake.command(&["logs", "0b5e"]).spawn().expect("started");
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut [0; 10]).await.expect("read");
    drop(stdout);
    let output = child.wait_with_output().await.expect("ended");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[tokio::test]
async fn completions_name_the_commands() {
    let fake = Fake::start().await;
    for shell in ["bash", "zsh", "fish"] {
        let ran = fake.run(&["completions", shell]).await;
        assert!(ran.code == 0 && ran.out.contains("join-token"), "{shell}");
    }
}
