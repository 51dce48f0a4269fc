//! The containers that do the work, and how their variables reach them.
//!
//! The engine writes what it is told at creation to disk. So a step's variables are not among that: the step's first
//! process is `entry.sh`, which reads one frame from its standard input, exports what is in it, and becomes the shell.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;

use devfleet_shared::attempt::Step;
use devfleet_shared::id::hex;
use devfleet_shared::secret::Secret;
use secrecy::{ExposeSecret as _, SecretSlice};

use super::services::memory_shares;
use super::{Devbox, EnvironmentError, WORKSPACE};
use crate::engine::{ContainerSpec, ImageFacts, Mount, ObjectKind};

/// The first process of every step; see the file.
const ENTRY: &str = include_str!("../entry.sh");
/// Runs a script with bash where there is one, as CI runners do, else with sh; stops at the first failing command.
const SHELL: &str =
    r#"if command -v bash >/dev/null 2>&1; then exec bash -e -o pipefail -c "$1"; fi; exec sh -e -c "$1""#;
/// Waits, at no cost, until it is told to end.
const WAIT: &str = r#"trap 'exit 0' TERM INT; while :; do sleep 3600 & wait "$!"; done"#;
/// Where the mirror is mounted.
const MIRROR: &str = "/mirror";
/// The capabilities that installing packages and changing users need; all others are dropped.
pub(super) const CAPABILITIES: [&str; 6] = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETUID", "SETGID", "FSETID"];
/// Linux takes 128 KiB for one argument or variable (MAX_ARG_STRLEN), its end included.
const ARGUMENT_LIMIT: usize = 128 * 1024 - 1;
/// Variables that bash owns and will not let anyone set; where sh is bash, setting one would end the shell.
const SHELL_OWNED: [&str; 6] = ["UID", "EUID", "PPID", "SHELLOPTS", "BASHOPTS", "BASH_VERSINFO"];

/// What one step runs, and what it may reach.
#[derive(Debug, Clone, Default)]
pub struct StepCommand {
    /// The shell script. Not secret: the engine writes it to disk.
    pub script: String,
    /// A bare repository of this host that is mounted read-only at `/mirror`.
    pub mirror: Option<PathBuf>,
    /// Caches that it sees.
    pub caches: Vec<Mount>,
    /// Whether it joins the environment's network; without, it has none at all.
    pub network: bool,
    /// Whether the engine keeps its output, so that it can be read again after a restart.
    pub keep_output: bool,
}

impl Devbox<'_> {
    /// Makes the container of a step without starting it, and returns its name. Safe to repeat.
    ///
    /// `round` tells repeated runs of one step apart, from 1. Start it with [`frame`] as its input.
    pub async fn make_step(
        &self,
        image: &ImageFacts,
        step: Step,
        round: u32,
        command: StepCommand,
    ) -> Result<String, EnvironmentError> {
        if command.script.len() > ARGUMENT_LIMIT {
            return Err(EnvironmentError::ScriptTooLong {
                step: step.name(),
                length: command.script.len(),
                limit: ARGUMENT_LIMIT,
            });
        }
        let role = if round <= 1 { step.name().to_owned() } else { format!("{}-{round}", step.name()) };
        let mut spec = self.step_container(image, &role);
        spec.entrypoint = Some(vec!["/bin/sh".into(), "-c".into(), ENTRY.into(), "devfleet-entry".into()]);
        spec.command = Some(self.step_command(image, command.script));
        spec.network = command.network.then(|| self.network_name());
        spec.keep_output = command.keep_output;
        spec.stdin = true;
        spec.mounts.extend(command.mirror.map(|source| Mount::ReadOnlyDirectory { source, target: MIRROR.into() }));
        spec.mounts.extend(command.caches);
        self.make_container(spec).await
    }

    /// Makes and starts a container that only waits, for people to `docker exec` into, and returns its name.
    ///
    /// Safe to repeat. It sees workspace and network, and the variables of the CI file; no secret.
    pub async fn hold(&self, image: &ImageFacts) -> Result<String, EnvironmentError> {
        let mut spec = self.step_container(image, "hold");
        spec.entrypoint = Some(vec!["/bin/sh".into(), "-c".into(), WAIT.into()]);
        spec.command = Some(Vec::new());
        spec.network = Some(self.network_name());
        spec.variables = self.assignment.environment.variables.clone();
        let name = self.make_container(spec).await?;
        let started = self.engine.start(&name, None, false).await;
        started.map_err(|source| EnvironmentError::Engine { action: format!("start {name}"), source })?;
        Ok(name)
    }

    pub(super) async fn make_container(&self, spec: ContainerSpec) -> Result<String, EnvironmentError> {
        self.announce(ObjectKind::Container, &spec.name)?;
        let made = self.engine.ensure_container(&spec).await;
        made.map_err(|source| EnvironmentError::Engine { action: format!("make container {}", spec.name), source })?;
        Ok(spec.name)
    }

    fn step_container(&self, image: &ImageFacts, role: &str) -> ContainerSpec {
        let (spec, limits) = (&self.assignment.environment, &self.assignment.limits);
        let (memory_bytes, _) = memory_shares(limits.resources.memory_bytes, spec.services.len() as u64);
        ContainerSpec {
            name: self.name(role),
            image: image.id.clone(),
            user: spec.user.clone(),
            working_dir: Some(WORKSPACE.into()),
            mounts: vec![self.workspace_mount()],
            capabilities: CAPABILITIES.map(Into::into).to_vec(),
            cpu_millis: limits.resources.cpu_millis,
            memory_bytes,
            pids: limits.pids,
            runtime: limits.runtime.clone(),
            init: true,
            labels: self.labels(role),
            ..ContainerSpec::default()
        }
    }

    /// Puts the image's own entrypoint before the shell, as CI runners do.
    fn step_command(&self, image: &ImageFacts, script: String) -> Vec<String> {
        let own = match &self.assignment.environment.entrypoint {
            Some(replaced) if replaced.iter().all(String::is_empty) => &[],
            Some(replaced) => replaced.as_slice(),
            None => image.entrypoint.as_slice(),
        };
        let shell = ["/bin/sh", "-c", SHELL, "devfleet-step"].map(String::from);
        own.iter().cloned().chain(shell).chain([script]).collect()
    }
}

/// The bytes that [`ENTRY`] reads. They hold secrets: no Debug, wiped when dropped.
pub struct Frame(SecretSlice<u8>);

impl Deref for Frame {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[frame]")
    }
}

/// A variable that cannot be given to a program. Names no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shells do not take the name.
    #[error("set variable {name:?}: a name has letters, digits and underscores only, and does not start with a digit")]
    Name {
        /// The name.
        name: String,
    },
    /// The value holds a zero byte.
    #[error("set variable {name}: its value holds a zero byte, which no program can be given")]
    ZeroByte {
        /// The name.
        name: String,
    },
    /// The value is too long.
    #[error("set variable {name}: name and value have {length} bytes together, Linux takes {ARGUMENT_LIMIT}")]
    TooLong {
        /// The name.
        name: String,
        /// The length of name and value in bytes.
        length: usize,
    },
}

/// Packs variables for a step's first process. Values may hold anything but zero bytes.
pub fn frame(variables: &BTreeMap<String, Secret>) -> Result<Frame, FrameError> {
    let marker = hex(&rand::random::<[u8; 16]>());
    // In one piece from the start: a buffer that grows leaves copies of its content behind.
    let room: usize = variables.iter().map(|(name, value)| 3 * name.len() + 4 * value.expose().len() + 64).sum();
    let mut text = String::with_capacity(room + 2 * marker.len() + 2);
    text.push_str(&marker);
    text.push('\n');
    for (name, value) in variables {
        check_variable(name, value.expose())?;
        if SHELL_OWNED.contains(&name.as_str()) {
            text.extend(["(export ", name, "=1) 2>/dev/null && "]);
        }
        text.extend(["export ", name, "='"]);
        for (index, piece) in value.expose().split('\'').enumerate() {
            text.extend([if index == 0 { "" } else { r"'\''" }, piece]);
        }
        text.push_str("'\n");
    }
    text.push_str(&marker);
    text.push('\n');
    Ok(Frame(SecretSlice::from(text.into_bytes())))
}

fn check_variable(name: &str, value: &str) -> Result<(), FrameError> {
    let named = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !named {
        return Err(FrameError::Name { name: name.to_owned() });
    }
    if value.contains('\0') {
        return Err(FrameError::ZeroByte { name: name.to_owned() });
    }
    let length = name.len() + 1 + value.len();
    if length > ARGUMENT_LIMIT {
        return Err(FrameError::TooLong { name: name.to_owned(), length });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Output, Stdio};

    use proptest::prelude::*;

    use super::*;

    /// The shells of this machine that a `/bin/sh` may turn out to be.
    fn shells() -> Vec<Vec<&'static str>> {
        let known: [&[&str]; 3] = [&["dash"], &["bash", "--posix"], &["busybox", "sh"]];
        let there = |shell: &&[&str]| Command::new(shell[0]).args(&shell[1..]).args(["-c", ":"]).output().is_ok();
        let found: Vec<_> = known.into_iter().filter(there).map(<[_]>::to_vec).collect();
        assert!(!found.is_empty(), "no dash, bash or busybox here: apt-get install dash");
        found
    }

    fn run(shell: &[&str], input: &[u8], command: &[&str]) -> Output {
        let mut child = Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", ENTRY, "devfleet-entry"])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell");
        child.stdin.take().expect("its input").write_all(input).expect("the frame is read");
        child.wait_with_output().expect("an end")
    }

    fn variables(values: &[(&str, &str)]) -> BTreeMap<String, Secret> {
        values.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect()
    }

    #[test]
    fn nasty_values_arrive_unchanged_in_every_shell() {
        let nasty = [
            ("QUOTES", r#"it's "quoted" '' '\'' `id` $(id) ${HOME} \n \\"#),
            ("LINES", "\n\nfirst\n  second\t \r\n\nlast\n"),
            ("BYTES", "\u{1}\u{7f}äöü\u{1f980}\u{80}\u{feff}"),
            ("LOOKS_LIKE_OPTION", "-n -e ! ( ) * ? [a-z] ~ # ; & | < >"),
            ("EMPTY", ""),
            ("_", "underscore"),
            ("devfleet_frame2", "own"),
        ];
        for shell in shells() {
            for (name, value) in nasty.into_iter().filter(|(name, _)| *name != "_") {
                let packed = frame(&variables(&nasty)).expect("a frame");
                // An end mark, since $(…) would eat trailing line ends; printf is the same everywhere.
                let script = format!("printf '%s|' \"${name}\"");
                let output = run(&shell, &packed, &["sh", "-c", &script]);
                assert!(output.status.success(), "{shell:?} {name}: {output:?}");
                assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{value}|"), "{shell:?} {name}");
            }
        }
    }

    #[test]
    fn long_values_and_many_lines_arrive() {
        let long = "it's a line of a task\n".repeat(ARGUMENT_LIMIT / 22 - 8);
        for shell in shells() {
            let packed = frame(&variables(&[("LONG", &long)])).expect("a frame");
            let output = run(&shell, &packed, &["sh", "-c", "printf %s \"${#LONG}\""]);
            assert_eq!(String::from_utf8_lossy(&output.stdout), long.len().to_string(), "{shell:?}: {output:?}");
        }
    }

    #[test]
    fn the_program_gets_its_arguments_and_no_input_and_none_of_our_own_variables() {
        for shell in shells() {
            let mut input = frame(&variables(&[("A", "1")])).expect("a frame").to_vec();
            input.extend_from_slice(b"left over\n");
            let script = r#"cat; printf '%s|' "$@"; set | grep -c ^devfleet_ || true"#;
            let output = run(&shell, &input, &["sh", "-c", script, "zero", "a b", "", "*"]);
            assert_eq!(String::from_utf8_lossy(&output.stdout), "a b||*|0\n", "{shell:?}");
        }
    }

    #[test]
    fn a_cut_frame_runs_nothing() {
        let whole = frame(&variables(&[("A", "1"), ("B", "two\nlines")])).expect("a frame");
        for shell in shells() {
            for length in [0, 1, 10, 33, whole.len() / 2, whole.len() - 1, whole.len() - 5] {
                let output = run(&shell, &whole[..length], &["echo", "ran"]);
                assert_eq!(output.status.code(), Some(125), "{shell:?} at {length}");
                assert!(output.stdout.is_empty(), "{shell:?} at {length}");
                assert!(String::from_utf8_lossy(&output.stderr).contains("devfleet: no frame arrived"));
            }
        }
    }

    #[test]
    fn names_that_bash_owns_do_not_end_the_shell() {
        for shell in shells() {
            let packed =
                frame(&variables(&[("EUID", "7"), ("UID", "7"), ("PPID", "7"), ("Z", "last")])).expect("a frame");
            let output = run(&shell, &packed, &["sh", "-c", "printf %s \"$Z\""]);
            assert_eq!(String::from_utf8_lossy(&output.stdout), "last", "{shell:?}: {output:?}");
        }
    }

    #[test]
    fn what_no_program_can_be_given_is_refused_without_showing_it() {
        for name in ["", "1A", "A-B", "A B", "A=B", "Ä", "A;id", "A\nB"] {
            assert!(matches!(frame(&variables(&[(name, "v")])), Err(FrameError::Name { .. })), "{name:?}");
        }
        let refused = frame(&variables(&[("A", "canary\0")])).expect_err("a zero byte");
        assert!(!format!("{refused} {refused:?}").contains("canary"));
        let long = "x".repeat(ARGUMENT_LIMIT - 1);
        assert!(matches!(frame(&variables(&[("A", &long)])), Err(FrameError::TooLong { .. })));
        assert!(frame(&variables(&[("A", &long[1..])])).is_ok());
        assert_eq!(format!("{:?}", frame(&variables(&[("A", "canary")]))), "Ok([frame])");
    }

    #[test]
    fn the_script_runs_with_bash_where_there_is_one_and_stops_at_the_first_failure() {
        let run = |path: &str, script: &str| {
            Command::new("/bin/sh")
                .args(["-c", SHELL, "devfleet-step", script])
                .env("PATH", path)
                .output()
                .expect("a shell")
        };
        let path = std::env::var("PATH").expect("a path");
        let output = run(&path, "echo ${BASH_VERSION:+bash}; false | true; echo unreached");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "bash\n");
        assert!(!output.status.success());
        let folder = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink("/bin/sh", folder.path().join("sh")).expect("a link");
        let output = run(&folder.path().display().to_string(), "echo ${BASH_VERSION:-none}; false; echo unreached");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "none\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_text_without_zero_bytes_arrives(value in "[^\0]{0,80}") {
            let packed = frame(&variables(&[("VALUE", &value)])).expect("a frame");
            for shell in shells() {
                let output = run(&shell, &packed, &["sh", "-c", "printf '%s|' \"$VALUE\""]);
                prop_assert_eq!(output.stdout, format!("{value}|").into_bytes());
            }
        }
    }
}
