//! An attempt's life, branch by branch: what passes, what fails, what is cancelled, what is held.

use std::time::Duration;

use devfleet_host::attempt::ports::{CodeError, ControllerError, Leave};
use devfleet_host::disk::Space;
use devfleet_host::engine::Mount;
use devfleet_host::engine::memory::{Fault, Piece, Script};
use devfleet_shared::assignment::{AgentKind, Limits};
use devfleet_shared::attempt::{AttemptResult, Failure, FailureReason, Phase, Step};
use devfleet_shared::resources::Resources;

use crate::world::{CANARY, World, commit, now, trouble, until};

fn failure(result: AttemptResult) -> Failure {
    match result {
        AttemptResult::Failed(failure) => failure,
        other => panic!("not failed: {other:?}"),
    }
}

async fn fails(world: &World, reason: FailureReason, message: &str) {
    let failure = failure(world.carry_out().await);
    assert_eq!(failure.reason, reason, "{}", failure.message);
    assert!(failure.message.contains(message), "{:?} lacks {message:?}", failure.message);
    assert!(world.pushed().is_empty(), "nothing is pushed");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_runs_its_steps_in_order_and_pushes_the_commit() {
    let world = World::new();
    let daemon = world.begin().await;
    let result = world.finish(&daemon).await;
    assert_eq!(result, AttemptResult::Succeeded { commit: commit(), verified: true });
    assert_eq!(world.pushed(), [format!("devfleet/job-a3f91c20 {}", commit())]);
    let made = world.engine.calls();
    let steps: Vec<_> = made.iter().filter(|call| call.verb == "start").map(|call| call.about.as_str()).collect();
    assert_eq!(steps, ["redis", "checkout", "setup", "agent", "verify", "collect"].map(|role| world.name(role)));
    let request = &world.asked()[0];
    assert!(request.push && request.diff == "+fix");
    let verification = request.verification.as_ref().expect("it ran");
    assert!(verification.passed && verification.output_tail == "verify was here\n");
    let log = daemon.log();
    for line in ["[checkout] checkout was here", "[agent] agent was here", "[devfleet] result: succeeded"] {
        assert!(log.contains(line), "{log}");
    }
}

#[tokio::test(start_paused = true)]
async fn steps_without_lines_are_skipped() {
    let mut world = World::new();
    world.assignment.environment.setup.clear();
    world.assignment.environment.verify.clear();
    assert_eq!(world.carry_out().await, AttemptResult::Succeeded { commit: commit(), verified: false });
    assert!(world.asked()[0].verification.is_none());
    let never = |role: &str| !world.engine.calls().iter().any(|call| call.about == world.name(role));
    assert!(never("setup") && never("verify"));
}

#[tokio::test(start_paused = true)]
async fn only_the_agent_sees_secrets_and_only_through_its_input() {
    let world = World::new();
    world.script("agent", &format!("my key is {CANARY}!\n"), 0);
    world.engine.script("collect", Script::runs());
    let daemon = world.begin().await;
    world.running("collect").await;
    for step in ["checkout", "setup", "agent", "verify", "collect"] {
        let spec = world.engine.container(&world.name(step)).expect("made");
        assert!(!format!("{spec:?}").contains(CANARY), "{step}");
        let input = String::from_utf8(world.engine.input(&world.name(step)).expect("a frame")).expect("text");
        assert_eq!(input.contains(CANARY), step == "agent", "{step}");
        assert_eq!(input.contains("export CI='true'"), !["checkout", "collect"].contains(&step), "{step}");
        assert_eq!(input.contains("export DEVFLEET_TASK='Fix it'"), step == "agent", "{step}");
        let mirror = Mount::ReadOnlyDirectory { source: "/mirrors/web.git".into(), target: "/mirror".into() };
        assert_eq!(spec.mounts.contains(&mirror), step == "checkout", "{step}");
        assert_eq!(spec.network.is_none(), ["checkout", "collect"].contains(&step), "{step}");
        assert_eq!(spec.keep_output, step != "collect", "{step}");
    }
    assert!(daemon.log().contains("my key is ") && !daemon.log().contains(CANARY), "{}", daemon.log());
    assert!(!std::fs::read_to_string(world.ledger()).expect("ledger").contains(CANARY));
    daemon.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_that_holds_a_secret_is_shown_masked_and_not_pushed() {
    let world = World::new();
    *world.code.diff.lock().expect("diff") = Some(format!("+key = {CANARY}"));
    fails(&world, FailureReason::Collect, "holds a secret that was given to the agent").await;
    let asked = world.asked();
    assert!(!asked[0].push && asked[0].diff.starts_with("+key = ") && !asked[0].diff.contains(CANARY), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failing_checkout_or_setup_ends_the_attempt_with_its_last_lines() {
    for (step, reason) in [("checkout", FailureReason::Checkout), ("setup", FailureReason::Setup)] {
        let world = World::new();
        world.script(step, "one\nno such package\n", 2);
        fails(&world, reason, &format!("the {step} step ended with status 2; its output ends:\none\nno such package"))
            .await;
        assert!(world.asked().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_agent_has_its_diff_shown_and_nothing_pushed() {
    let world = World::new();
    world.script("agent", "cannot go on\n", 3);
    fails(&world, FailureReason::Agent, "status 3; its output ends:\ncannot go on").await;
    let asked = world.asked();
    assert!(asked.len() == 1 && !asked[0].push && asked[0].verification.is_none());
    assert!(!world.engine.calls().iter().any(|call| call.about == world.name("verify")), "verify is skipped");
}

#[tokio::test(start_paused = true)]
async fn a_failing_agent_that_changed_nothing_or_cannot_be_collected_still_failed_as_the_agent() {
    for status in [10, 1] {
        let world = World::new();
        world.script("agent", "", 3);
        world.script("collect", "", status);
        fails(&world, FailureReason::Agent, "it printed nothing").await;
        assert!(world.asked().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn failing_tests_have_the_diff_shown_and_nothing_pushed() {
    let world = World::new();
    world.script("verify", "1 failed\n", 1);
    fails(&world, FailureReason::Verify, "1 failed").await;
    let asked = world.asked();
    let verification = asked[0].verification.as_ref().expect("it ran");
    assert!(!asked[0].push && !verification.passed && verification.output_tail == "1 failed\n");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_changed_nothing_is_no_change_whatever_the_tests_say() {
    for verify in [0, 1] {
        let world = World::new();
        world.script("verify", "", verify);
        world.script("collect", "", 10);
        assert_eq!(world.carry_out().await, AttemptResult::NoChange);
        assert!(world.pushed().is_empty() && world.asked().is_empty());
    }
    let world = World::new();
    let no_change = CodeError { no_change: true, ..trouble("it changes nothing", false) };
    world.code.imports.lock().expect("imports").push_back(no_change);
    assert_eq!(world.carry_out().await, AttemptResult::NoChange);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_bundle_or_too_long_a_one_is_refused() {
    let world = World::new();
    world.script("collect", "not a bundle", 0);
    fails(&world, FailureReason::Collect, "it is none").await;

    let mut world = World::new();
    world.assignment.limits.bundle_bytes = 1 << 20;
    let flood = Piece { data: vec![b'x'; 1 << 19].into(), ..Piece::default() };
    world.engine.script("collect", Script { output: vec![flood; 4], ..Script::runs() });
    fails(&world, FailureReason::Collect, "a bundle over 1 MiB").await;

    let world = World::new();
    world.script("collect", "", 128);
    fails(&world, FailureReason::Collect, "status 128").await;
}

#[tokio::test(start_paused = true)]
async fn a_step_over_its_time_limit_is_stopped_and_the_failure_names_it() {
    for (step, shown) in [("checkout", 0), ("setup", 0), ("agent", 1), ("verify", 1), ("collect", 0)] {
        let world = World::new();
        world.engine.script(step, Script::runs());
        let limit = devfleet_shared::units::Span(
            world.assignment.limits.step(Step::ALL.into_iter().find(|s| s.name() == step).expect("step")),
        );
        fails(&world, FailureReason::Timeout, &format!("the {step} step was stopped after its time limit of {limit}"))
            .await;
        assert_eq!(world.asked().len(), shown, "{step}");
        let stops =
            world.engine.calls().iter().filter(|call| call.verb == "stop" && call.about == world.name(step)).count();
        assert!(stops > 0, "{step} is asked to stop before it is removed");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_over_its_time_limit_ends_whatever_it_does() {
    let mut world = World::new();
    world.assignment.limits.attempt = Duration::from_secs(600);
    world.engine.script("agent", Script::runs());
    fails(&world, FailureReason::Timeout, "in its phase `agent`, after its time limit of 10m").await;

    let mut world = World::new();
    world.assignment.limits.attempt = Duration::from_secs(600);
    *world.code.stuck.lock().expect("stuck") = Some("fetch");
    fails(&world, FailureReason::Timeout, "in its phase `preparing`").await;
}

#[tokio::test(start_paused = true)]
async fn running_out_of_memory_is_told() {
    let world = World::new();
    world.script_killed("agent", true);
    fails(&world, FailureReason::Agent, "killed for lack of memory (the limit is 2GiB)").await;
}

#[tokio::test(start_paused = true)]
async fn claude_code_succeeds_by_its_result_not_by_its_status_alone() {
    let good = r#"{"subtype":"success","is_error":false,"result":"Done.","type":"result"}"#;
    let bad =
        r#"{"subtype":"success","is_error":true,"api_error_status":402,"result":"API Error: 402","type":"result"}"#;
    let mut world = World::new();
    world.assignment.agent.kind = AgentKind::ClaudeCode;
    world.script("agent", &format!("{good}\n"), 0);
    assert!(matches!(world.carry_out().await, AttemptResult::Succeeded { .. }));

    let mut world = World::new();
    world.assignment.agent.kind = AgentKind::ClaudeCode;
    world.script("agent", &format!("{bad}\n"), 1);
    fails(&world, FailureReason::Agent, "(the model's API answered 402): API Error: 402").await;

    let mut world = World::new();
    world.assignment.agent.kind = AgentKind::ClaudeCode;
    world.script("agent", "Killed\n", 0);
    fails(&world, FailureReason::Agent, "without a result").await;
}

#[tokio::test(start_paused = true)]
async fn what_claude_code_says_it_has_used_is_reported_while_it_runs_and_after_a_restart() {
    let said = |id: u32, input: u32| {
        format!(
            "{{\"type\":\"assistant\",\"message\":{{\"id\":\"m{id}\",\"usage\":{{\"input_tokens\":{input},\"output_tokens\":1}}}}}}\n"
        )
    };
    let done =
        r#"{"type":"result","subtype":"success","is_error":false,"usage":{"input_tokens":100,"output_tokens":50}}"#;
    let mut world = World::new();
    world.assignment.agent.kind = AgentKind::ClaudeCode;
    let after = Duration::from_secs(60);
    let piece = |text: String, after| Piece { data: text.into(), after, ..Piece::default() };
    let output = vec![piece(said(1, 9) + &said(2, 19), Duration::ZERO), piece(format!("{done}\n"), after)];
    world.engine.script("agent", Script { output, ..Script::ends(after * 2, 0) });
    let daemon = world.begin().await;
    daemon.reported("the first tokens", &world.attempt(), |report| (report.tokens == 30).then_some(())).await;
    daemon.kill().await;
    let daemon = world.begin().await;
    let ended = daemon.ended(&world.attempt()).await;
    assert_eq!(ended.tokens, 150, "{ended:?}");
    assert!(matches!(world.finish(&daemon).await, AttemptResult::Succeeded { .. }));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_prepared_has_its_class() {
    let mut world = World::new();
    world.assignment.environment.image = "nowhere:1".into();
    fails(&world, FailureReason::ImagePull, "manifest unknown").await;

    let world = World::new();
    world.engine.set_build_error(Some("E: no such package"));
    fails(&world, FailureReason::ImageBuild, "no such package").await;

    let world = World::new();
    world.code.fetches.lock().expect("fetches").push_back(trouble("find commit: it is not there", false));
    fails(&world, FailureReason::Checkout, "it is not there").await;

    let mut world = World::new();
    world.assignment.limits.resources.disk_bytes = 1 << 30;
    world.engine_disk = Some("/".into());
    world.gauge = |_| Ok(Space { total_bytes: 100 << 30, free_bytes: 15 << 30, ..Space::UNSEEN });
    fails(&world, FailureReason::NoRoom, "not enough disk").await;
    assert!(!world.engine.calls().iter().any(|call| call.verb.starts_with("ensure")), "nothing was made");

    let world = World::new();
    let refused = ControllerError::Refused { detail: "cannot read env://KEY".into() };
    world.controller.grants.lock().expect("grants").push_back(refused);
    fails(&world, FailureReason::Secret, "env://KEY").await;

    let world = World::new();
    *world.controller.weak_secret.lock().expect("weak") = true;
    fails(&world, FailureReason::Secret, "failed to mask variable MODEL_KEY in output: ").await;
}

#[tokio::test(start_paused = true)]
async fn troubles_that_pass_are_waited_for() {
    let world = World::new();
    let away = || ControllerError::Unreachable { detail: "connection refused".into() };
    world.controller.grants.lock().expect("grants").extend([away(), away()]);
    world.controller.leaves.lock().expect("leaves").push_back(Err(away()));
    world.code.fetches.lock().expect("fetches").push_back(trouble("reach it", true));
    world.code.imports.lock().expect("imports").push_back(trouble("write it", true));
    world.code.pushes.lock().expect("pushes").extend((0..4).map(|_| trouble("reach it", true)));
    assert!(matches!(world.carry_out().await, AttemptResult::Succeeded { .. }));
    assert_eq!(world.pushed().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_push_tells_what_the_remote_said() {
    let world = World::new();
    world.code.pushes.lock().expect("pushes").push_back(trouble("push branch: pre-receive hook declined", false));
    fails(&world, FailureReason::Push, "pre-receive hook declined").await;

    let world = World::new();
    world.code.pushes.lock().expect("pushes").extend((0..5).map(|_| trouble("reach it", true)));
    fails(&world, FailureReason::Push, "reach it").await;
}

#[tokio::test(start_paused = true)]
async fn without_leave_nothing_is_pushed_and_the_attempt_is_lost() {
    let superseded = ControllerError::Superseded { detail: "another fence".into() };
    for leave in [Ok(Leave::Refused("cancelled".into())), Err(superseded)] {
        let world = World::new();
        world.controller.leaves.lock().expect("leaves").push_back(leave);
        assert_eq!(world.carry_out().await, AttemptResult::Lost);
        assert!(world.pushed().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn cancel_at_any_moment_ends_in_nothing_left_within_fifteen_seconds() {
    for moment in ["fetch", "checkout", "setup", "agent", "verify", "collect", "import", "push"] {
        let world = World::new();
        let in_code = ["fetch", "import", "push"].contains(&moment);
        match moment {
            _ if in_code => *world.code.stuck.lock().expect("stuck") = Some(moment),
            _ => world.engine.script(moment, Script::runs()),
        }
        let daemon = world.begin().await;
        let before = match moment {
            "fetch" => "redis",
            "import" | "push" => "collect",
            step => step,
        };
        world.running(before).await;
        if in_code {
            until("the call is under way", || world.code.waits() == Some(moment)).await;
        }
        let asked = tokio::time::Instant::now();
        daemon.handle.apply(world.set(2, true), false).await;
        assert_eq!(world.finish(&daemon).await, AttemptResult::Cancelled, "{moment}");
        assert!(asked.elapsed() < Duration::from_secs(15), "{moment}: {:?}", asked.elapsed());
        assert!(world.pushed().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_cancelled_before_it_began_makes_nothing() {
    let world = World::new();
    let daemon = world.start();
    daemon.handle.apply(world.set(1, true), true).await;
    assert_eq!(world.finish(&daemon).await, AttemptResult::Cancelled);
    assert!(!world.engine.calls().iter().any(|call| call.verb.starts_with("ensure")));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_not_wanted_any_more_is_taken_down_and_forgotten_unasked() {
    let world = World::new();
    world.engine.script("agent", Script::runs());
    let daemon = world.begin().await;
    world.running("agent").await;
    let nothing = devfleet_host::assignments::AssignmentSet { generation: 2, ..Default::default() };
    daemon.handle.apply(nothing, false).await;
    daemon.gone(&world.attempt()).await;
    world.assert_nothing_is_left();
    assert!(!world.ledger().exists());
}

#[tokio::test(start_paused = true)]
async fn a_superseded_report_stops_the_attempt_and_an_older_set_does_not() {
    let world = World::new();
    world.engine.script("agent", Script::runs());
    let daemon = world.begin().await;
    world.running("agent").await;
    let older = devfleet_host::assignments::AssignmentSet::default();
    daemon.handle.apply(older, false).await;
    daemon.handle.reserved().await;
    assert!(
        daemon.handle.board().of(&world.attempt()).is_some_and(|report| report.phase == Phase::Running(Step::Agent))
    );
    daemon.handle.acknowledge(world.attempt(), 1, true).await;
    daemon.gone(&world.attempt()).await;
    world.assert_nothing_is_left();
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_ended_is_not_begun_again_by_a_set_that_was_on_its_way() {
    let world = World::new();
    let daemon = world.begin().await;
    world.finish(&daemon).await;
    let calls = world.engine.calls().len();
    daemon.handle.apply(world.set(2, false), false).await;
    // Whatever was begun by the set has its room, and its ledger, before this is answered.
    assert_eq!(daemon.handle.reserved().await, Resources::default());
    assert!(!world.ledger().exists(), "it was begun again");
    assert!(daemon.handle.board().of(&world.attempt()).is_none());
    assert_eq!(world.engine.calls().len(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_held_environment_stays_until_its_end_and_then_goes() {
    let mut world = World::new();
    world.assignment.hold = Duration::from_secs(3_600);
    let daemon = world.begin().await;
    let report = daemon.ended(&world.attempt()).await;
    let until_then = report.held_until.expect("held");
    assert!(until_then.since(now()) > Duration::from_secs(3_500));
    assert!(
        world.engine.container(&world.name("hold")).is_some() && world.engine.container(&world.name("redis")).is_some()
    );
    assert!(world.engine.input(&world.name("hold")).is_none_or(|input| input.is_empty()), "no secret goes in");
    // Neither the acknowledgement, nor a lost one, nor the end of the assignment ends a hold.
    daemon.handle.acknowledge(world.attempt(), report.sequence, false).await;
    daemon.handle.acknowledge(world.attempt(), report.sequence, true).await;
    daemon.handle.apply(devfleet_host::assignments::AssignmentSet { generation: 9, ..Default::default() }, false).await;
    let began = tokio::time::Instant::now();
    let over = |report: devfleet_host::attempt::reports::Report| report.held_until.is_none().then_some(report);
    let report = daemon.reported("the end of the hold", &world.attempt(), over).await;
    assert!(began.elapsed() > Duration::from_secs(3_400), "it was ended after {:?}", began.elapsed());
    world.assert_nothing_is_left();
    daemon.handle.acknowledge(world.attempt(), report.sequence, false).await;
    daemon.gone(&world.attempt()).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_ends_a_hold_and_a_cancelled_attempt_is_not_held() {
    let mut world = World::new();
    world.assignment.hold = Duration::from_secs(3_600);
    let daemon = world.begin().await;
    daemon.ended(&world.attempt()).await;
    daemon.handle.apply(world.set(2, true), false).await;
    let over = |report: devfleet_host::attempt::reports::Report| report.held_until.is_none().then_some(());
    daemon.reported("the end of the hold", &world.attempt(), over).await;
    world.assert_nothing_is_left();

    let mut world = World::new();
    world.assignment.hold = Duration::from_secs(3_600);
    world.engine.script("agent", Script::runs());
    let daemon = world.begin().await;
    world.running("agent").await;
    daemon.handle.apply(world.set(2, true), false).await;
    assert_eq!(world.finish(&daemon).await, AttemptResult::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn what_resists_the_tear_down_is_tried_until_it_goes() {
    let world = World::new();
    let tries = std::sync::atomic::AtomicUsize::new(0);
    let name = world.name("redis");
    world.engine.fail_when(move |call| {
        let first =
            call.verb == "remove" && call.about == name && tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 60;
        first.then_some(Fault::Before)
    });
    assert!(matches!(world.carry_out().await, AttemptResult::Succeeded { .. }));
}

#[tokio::test(start_paused = true)]
async fn any_engine_call_that_fails_once_is_survived_or_is_the_engines_failure() {
    let world = World::new();
    world.carry_out().await;
    let calls = world.engine.calls().len();
    for number in 1..=calls {
        for fault in [Fault::Before, Fault::After] {
            let world = World::new();
            world.engine.fail_when(move |call| (call.number == number).then_some(fault));
            match world.carry_out().await {
                AttemptResult::Succeeded { .. } => assert_eq!(world.pushed().len(), 1),
                AttemptResult::Failed(failure) => {
                    assert_eq!(failure.reason, FailureReason::Engine, "call {number} {fault:?}: {}", failure.message);
                    assert!(world.pushed().is_empty());
                }
                other => panic!("call {number} {fault:?}: {other:?}"),
            }
            let again = world.name("agent-2");
            assert!(!world.engine.calls().iter().any(|call| call.about == again), "call {number}: a second agent");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_no_slot_any_more_is_refused_and_what_ends_makes_room() {
    let mut world = World::new();
    world.engine.script("agent", Script::runs());
    world.assignment.limits.resources.memory_bytes = 1 << 30;
    let daemon = world.start();
    let mut set = devfleet_host::assignments::AssignmentSet { generation: 1, ..Default::default() };
    let want = |set: &mut devfleet_host::assignments::AssignmentSet, number: u32| {
        let mut assignment = world.assignment.clone();
        assignment.attempt = format!("0000000{number}").parse().expect("attempt id");
        let wanted = devfleet_host::assignments::Wanted { assignment: assignment.clone(), cancel: false };
        set.wanted.insert(assignment.attempt, wanted);
    };
    (0..6).for_each(|number| want(&mut set, number));
    daemon.handle.apply(set.clone(), true).await;
    let at = |phase: &str| daemon.handle.board().all().iter().filter(|report| report.phase.name() == phase).count();
    until("four run", || at("agent") == 4 && at("ended") == 2).await;
    let reports = daemon.handle.board().all();
    for report in reports.iter().filter(|report| report.phase.name() == "ended") {
        let Some(AttemptResult::Failed(failure)) = report.phase.result() else { panic!("{report:?}") };
        assert!(failure.reason == FailureReason::NoRoom && failure.message.contains("slots"), "{failure:?}");
    }
    let runs = reports.iter().find(|report| report.phase.name() == "agent").expect("one runs");
    set.generation = 2;
    set.wanted.get_mut(&runs.claim.attempt).expect("wanted").cancel = true;
    daemon.handle.apply(set.clone(), false).await;
    assert_eq!(daemon.ended(&runs.claim.attempt).await.phase, Phase::Ended(AttemptResult::Cancelled));
    // Its end has just been reported: whatever is given now finds the room.
    set.generation = 3;
    want(&mut set, 7);
    daemon.handle.apply(set, false).await;
    until("another runs", || at("agent") == 4).await;
}

#[tokio::test(start_paused = true)]
async fn memory_processors_and_runtime_are_judged_on_the_host_too() {
    let check = async |change: fn(&mut Limits), told: &str| {
        let mut world = World::new();
        change(&mut world.assignment.limits);
        fails(&world, FailureReason::NoRoom, told).await;
        assert!(!world.engine.calls().iter().any(|call| call.verb.starts_with("ensure")), "nothing was made");
    };
    check(|limits| limits.resources.memory_bytes = 9 << 30, "not enough memory").await;
    check(|limits| limits.resources.cpu_millis = 2_001, "not enough cpu").await;
    check(|limits| limits.runtime = Some("runsc".into()), "no runtime runsc").await;
}

#[tokio::test(start_paused = true)]
async fn every_container_of_an_environment_has_the_wanted_runtime() {
    let mut world = World::new();
    world.assignment.limits.runtime = Some("runc".into());
    world.engine.script("agent", Script::runs());
    let daemon = world.begin().await;
    until("the agent runs", || daemon.handle.board().all().iter().any(|report| report.phase.name() == "agent")).await;
    for role in ["redis", "checkout", "agent"] {
        let Some(made) = world.engine.container(&world.name(role)) else { continue };
        assert_eq!(made.runtime.as_deref(), Some("runc"), "{role}");
    }
    assert!(
        world.engine.container(&world.name("redis")).is_some()
            && world.engine.container(&world.name("agent")).is_some()
    );
}
