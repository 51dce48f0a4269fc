//! Runs the scenes one after the other, as a test harness of its own: they share one testbed.
//!
//! After a scene that failed the testbed is made anew, so that one defect is reported once.

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::fleet::now;
use crate::invariants::{CONTROLS, run_control};
use crate::scenes::{SCENES, Scene};
use crate::work::Stage;

/// The bound of one scene.
const SCENE: Duration = Duration::from_secs(1_200);
/// After so many failures the rest is not worth its time.
const FAILURES: usize = 5;

/// What the command line asks for.
struct Wanted {
    filters: Vec<String>,
    skipped: Vec<String>,
    list: bool,
    /// Long scenes too, and the others at full length.
    chaos: bool,
}

impl Wanted {
    fn read() -> Self {
        let chaos = std::env::var("DEVFLEET_CHAOS").is_ok_and(|value| value == "1");
        let mut wanted = Wanted { filters: Vec::new(), skipped: Vec::new(), list: false, chaos };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => wanted.list = true,
                "--skip" => wanted.skipped.extend(arguments.next()),
                "--test-threads" | "--format" | "--color" => drop(arguments.next()),
                other if other.starts_with('-') => {}
                _ => wanted.filters.push(argument),
            }
        }
        wanted
    }

    fn takes(&self, name: &str, long: bool) -> bool {
        let named = |words: &[String]| words.iter().any(|word| name.contains(word.as_str()));
        !named(&self.skipped) && if self.filters.is_empty() { self.chaos || !long } else { named(&self.filters) }
    }
}

/// Runs what was asked for.
pub(crate) fn run() -> ExitCode {
    let wanted = Wanted::read();
    let controls: Vec<_> = CONTROLS.iter().map(|control| (format!("control: {}", control.0), control)).collect();
    let controls: Vec<_> = controls.iter().filter(|(name, _)| wanted.takes(name, false)).collect();
    let scenes: Vec<_> = SCENES.iter().filter(|scene| wanted.takes(scene.name, scene.long)).collect();
    if wanted.list {
        controls.iter().for_each(|(name, _)| say(&format!("{name}: test")));
        scenes.iter().for_each(|scene| say(&format!("{}: test", scene.name)));
        return ExitCode::SUCCESS;
    }
    let mut failures = 0;
    for (name, (_, invariant, tamper)) in controls {
        let sound = std::panic::catch_unwind(|| run_control(invariant, *tamper)).is_ok();
        say(&format!("{name} ... {}", verdict(sound)));
        failures += usize::from(!sound);
    }
    failures += play_all(&scenes, wanted.chaos);
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn play_all(scenes: &[&Scene], chaos: bool) -> usize {
    if scenes.is_empty() {
        return 0;
    }
    if !rustix::process::geteuid().is_root() {
        say("LEFT OUT: the scenes make network namespaces, which takes root");
        return 0;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut failures = 0;
    let mut stage = None;
    for scene in scenes {
        let begun = now();
        if stage.is_none() {
            stage = Some(runtime.block_on(Stage::up()));
            say(&format!("the testbed is up after {:.1} s", (now() - begun).as_secs_f32()));
        }
        let begun = now();
        let ready = stage.as_ref().expect("a stage");
        let play = async {
            // sleep: the bound of a scene
            tokio::time::timeout(SCENE, (scene.play)(ready, chaos)).await.expect("the scene ends in time")
        };
        let played = runtime.block_on(AssertUnwindSafe(play).catch_unwind());
        let took = (now() - begun).as_secs_f32();
        say(&format!("row {}: {} ... {} ({took:.1} s)", scene.row, scene.name, verdict(played.is_ok())));
        match played {
            Ok(report) if report.is_empty() => {}
            Ok(report) => say(&format!("    {report}")),
            Err(_) => {
                failures += 1;
                say(&ready.fleet.logs());
                stage = None;
            }
        }
        if failures >= FAILURES {
            say("too many failures: the rest is not played");
            break;
        }
    }
    failures
}

fn verdict(sound: bool) -> &'static str {
    if sound { "ok" } else { "FAILED" }
}

#[expect(clippy::print_stdout, reason = "a test harness reports")]
fn say(text: &str) {
    println!("{text}");
}
