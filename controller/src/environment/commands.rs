//! CI's lines, sorted: OS packages go into the image, the installation of dependencies into `setup`, the rest of the
//! job's script into `verify`; what must not run is dropped with its reason. Order and shell meaning stay.

use std::collections::BTreeSet;

use super::Dropped;
use super::purpose::{self, Purpose};
use super::shell::{self, Script, Unit};

/// The sorted lines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Sorted {
    pub(super) packages: Vec<String>,
    pub(super) setup: Vec<String>,
    pub(super) verify: Vec<String>,
    pub(super) dropped: Vec<Dropped>,
    pub(super) notes: Vec<String>,
    /// Whether dependencies are installed anywhere.
    pub(super) installs: bool,
    /// The most telling thing that `verify` does.
    pub(super) checks: Option<Purpose>,
}

/// A line, or a block that must stay in one piece.
struct Piece {
    text: String,
    units: Vec<Unit>,
    plain: bool,
    fate: Fate,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Keep,
    /// Its packages go into the image.
    Baked,
    /// Refreshes package lists: only of use where packages are installed after it.
    Refresh,
    Gone,
}

/// Sorts the lines of `before_script` and `script`.
pub(super) fn sort(before: &[String], script: &[String]) -> Sorted {
    let mut sorted = Sorted::default();
    let mut before = pieces(before);
    let mut script = pieces(script);
    let mut foreign_packages = false;
    for piece in before.iter_mut().chain(script.iter_mut()) {
        decide(piece, &mut foreign_packages, &mut sorted);
    }
    let mut seen = BTreeSet::new();
    sorted.packages.retain(|name| seen.insert(name.clone()));
    let installs = |piece: &Piece| piece.fate == Fate::Keep && piece.purposes().contains(&Purpose::Dependencies);
    sorted.installs = before.iter().chain(&script).any(installs);
    let moved = dependency_prefix(&script);
    let rest = script.split_off(moved);
    let needs_lists =
        before.iter().chain(&script).chain(&rest).any(|piece| piece.fate == Fate::Keep && piece.installs());
    let stays = |piece: &&Piece| piece.fate == Fate::Keep || (needs_lists && piece.fate == Fate::Refresh);
    for piece in before.iter().chain(&script).filter(stays) {
        sorted.setup.push(piece.text.clone());
        // `setup` and `verify` run in two shells: what changes the shell itself has to happen in both.
        sorted.verify.extend(piece.state());
    }
    let rest: Vec<&Piece> = rest.iter().filter(stays).collect();
    sorted.checks = rest.iter().map(|piece| piece.purpose()).max();
    if rest.is_empty() {
        sorted.verify.clear();
    }
    sorted.verify.extend(rest.iter().map(|piece| piece.text.clone()));
    sorted
}

/// Cuts blocks of several lines into lines where that changes nothing; leaves out comments.
fn pieces(entries: &[String]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for entry in entries {
        let Script { units, plain } = shell::split(entry);
        if !plain {
            pieces.push(Piece { text: entry.trim_end().to_owned(), units, plain, fate: Fate::Keep });
            continue;
        }
        let mut line: Vec<Unit> = Vec::new();
        for unit in units {
            let ends = unit.ends_line;
            line.push(unit);
            if ends {
                pieces.extend(Piece::of_line(std::mem::take(&mut line)));
            }
        }
        pieces.extend(Piece::of_line(line));
    }
    pieces
}

impl Piece {
    fn of_line(units: Vec<Unit>) -> Option<Piece> {
        if units.iter().all(|unit| unit.commands.is_empty()) {
            return None;
        }
        let text = shell::join(&units.iter().collect::<Vec<_>>());
        Some(Piece { text, units, plain: true, fate: Fate::Keep })
    }

    fn purposes(&self) -> Vec<Purpose> {
        self.units.iter().map(purpose::of_unit).collect()
    }

    fn purpose(&self) -> Purpose {
        self.purposes().into_iter().max().unwrap_or(Purpose::Trivial)
    }

    fn installs(&self) -> bool {
        self.purposes().contains(&Purpose::Packages)
    }

    /// The part that changes the shell itself.
    fn state(&self) -> Option<String> {
        let states: Vec<&Unit> = self.units.iter().filter(|unit| purpose::of_unit(unit) == Purpose::State).collect();
        match (states.is_empty(), self.plain) {
            (true, _) => None,
            (false, true) => Some(shell::join(&states)),
            (false, false) => Some(self.text.clone()),
        }
    }
}

/// Decides what becomes of one piece. `foreign_packages`: an earlier line added a place that packages come from.
fn decide(piece: &mut Piece, foreign_packages: &mut bool, sorted: &mut Sorted) {
    let banned = |unit: &Unit| match purpose::of_unit(unit) {
        Purpose::Forbidden(ban) => Some(ban.reason()),
        _ => None,
    };
    if piece.plain {
        drop_units(piece, banned, sorted);
        send_nothing(piece, sorted);
    } else if let Some(reason) = piece.units.iter().find_map(banned) {
        let worth = piece.purposes().into_iter().filter(|purpose| !matches!(purpose, Purpose::Forbidden(_))).max();
        if worth.is_none_or(|purpose| purpose < Purpose::Dependencies) {
            sorted.dropped.push(Dropped { line: piece.text.clone(), reason: reason.to_owned() });
            piece.fate = Fate::Gone;
        } else {
            let first = piece.text.lines().next().unwrap_or_default();
            sorted
                .notes
                .push(format!("the block that starts with `{first}` stays whole, although a part of it {reason}"));
        }
    }
    if piece.fate == Fate::Gone {
        return;
    }
    let purposes = piece.purposes();
    *foreign_packages |= purposes.contains(&Purpose::PackageSource);
    if purposes.iter().all(|purpose| *purpose == Purpose::PackageLists) {
        piece.fate = Fate::Refresh;
    } else if piece.installs() {
        let only_packages = purposes.iter().all(|purpose| matches!(purpose, Purpose::PackageLists | Purpose::Packages));
        let names = if piece.plain && only_packages && !*foreign_packages { package_names(&piece.units) } else { None };
        match names {
            Some(names) => {
                sorted.packages.extend(names);
                piece.fate = Fate::Baked;
            }
            None => sorted.notes.push(unbaked(piece, only_packages, *foreign_packages)),
        }
    }
}

fn unbaked(piece: &Piece, only_packages: bool, foreign: bool) -> String {
    let first = piece.text.lines().next().unwrap_or_default();
    let why = match (foreign, only_packages) {
        (true, _) => "they come from a source that an earlier line adds",
        (false, true) => "their names are only known when it runs",
        (false, false) => "the line does more than that",
    };
    format!("`{first}` installs OS packages when a job starts, not in the image: {why}")
}

fn is_condition(unit: &Unit) -> bool {
    let first = unit.commands.first().and_then(|words| words.first()).map(String::as_str);
    matches!(first, Some("[" | "[[" | "test" | "command" | "which" | "type"))
}

/// Takes forbidden units out of a plain line.
fn drop_units(piece: &mut Piece, banned: impl Fn(&Unit) -> Option<&'static str>, sorted: &mut Sorted) {
    let mut kept = Vec::new();
    let units = std::mem::take(&mut piece.units);
    let mut reasons: Vec<Option<&'static str>> = units.iter().map(banned).collect();
    // A condition goes with what it guards: `[ -f x ] && ssh-add`.
    for at in (1..units.len()).rev() {
        let guards = units[at - 1].joint == "&&" && is_condition(&units[at - 1]);
        if guards && reasons[at].is_some() && reasons[at - 1].is_none() {
            reasons[at - 1] = reasons[at];
        }
    }
    for (unit, reason) in units.into_iter().zip(reasons) {
        match reason {
            Some(reason) => sorted.dropped.push(Dropped { line: unit.text.clone(), reason: reason.to_owned() }),
            None => kept.push(unit),
        }
    }
    let text = shell::join(&kept.iter().collect::<Vec<_>>());
    if kept.is_empty() {
        piece.fate = Fate::Gone;
    }
    piece.text = text;
    piece.units = kept;
}

/// Takes out what sends results away in the middle of a build: `mvn deploy` ends with the tests, `gradle build publish`
/// with the build.
fn send_nothing(piece: &mut Piece, sorted: &mut Sorted) {
    for unit in &mut piece.units {
        let [command] = unit.commands.as_mut_slice() else { continue };
        let words = shell::program(command);
        let Some(tool) = words.first().filter(|name| matches!(name.as_str(), "mvn" | "gradle")).cloned() else {
            continue;
        };
        let sends = |word: &str| purpose::sends(&tool, word);
        if !words.iter().skip(1).any(|word| sends(word)) {
            continue;
        }
        let phase = |word: &String| matches!(word.as_str(), "test" | "verify" | "install" | "package");
        let tests = words.iter().any(phase);
        let kept = |word: &str| match word {
            "deploy" if tool == "mvn" && !tests => Some("test".to_owned()),
            word if sends(word) => None,
            word => Some(word.to_owned()),
        };
        let text = unit.text.split(' ').filter_map(kept).collect::<Vec<_>>().join(" ");
        let reason = format!("uploads what it built; the environment runs `{text}` in its place");
        sorted.dropped.push(Dropped { line: std::mem::replace(&mut unit.text, text), reason });
        *command = command.iter().filter_map(|word| kept(word)).collect();
    }
    piece.text = shell::join(&piece.units.iter().collect::<Vec<_>>());
}

/// How many pieces at the front of the script do nothing but install dependencies.
fn dependency_prefix(script: &[Piece]) -> usize {
    let prepares = |piece: &&Piece| {
        let allowed = |purpose: &Purpose| *purpose <= Purpose::Dependencies && *purpose != Purpose::Other;
        piece.fate != Fate::Keep || piece.purposes().iter().all(allowed)
    };
    let run = script.iter().take_while(prepares).count();
    let installs = |piece: &Piece| piece.fate == Fate::Keep && piece.purposes().contains(&Purpose::Dependencies);
    let moved = script.iter().take(run).rposition(installs).map_or(0, |last| last + 1);
    if script.iter().skip(moved).any(|piece| piece.fate == Fate::Keep) { moved } else { 0 }
}

/// The packages that units install, if their names stand there.
fn package_names(units: &[Unit]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for unit in units {
        if purpose::of_unit(unit) == Purpose::PackageLists {
            continue;
        }
        let [command] = unit.commands.as_slice() else { return None };
        let words = shell::program(command);
        let mut words = words.iter().skip(1).map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "install" | "add" if names.is_empty() => {}
                "-o" | "--virtual" => {
                    words.next();
                }
                "-t" if command.iter().any(|word| word == "apk") => {
                    words.next();
                }
                ">" | ">>" | "2>" | "&>" => {
                    words.next();
                }
                _ if word.contains('>') => {}
                "-t" | "-X" | "--repository" | "--allow-untrusted" | "-f" => return None,
                _ if word.starts_with("--target-release") || word.starts_with("--default-release") => return None,
                _ if word.starts_with("--enablerepo") || word.starts_with("--repo") => return None,
                _ if word.starts_with('-') => {}
                _ if is_package(word) => names.push(word.to_owned()),
                _ => return None,
            }
        }
    }
    (!names.is_empty()).then_some(names)
}

/// Whether a word is the name of a package and nothing that a shell or a package manager could take for more.
pub(super) fn is_package(word: &str) -> bool {
    word.starts_with(|first: char| first.is_ascii_alphanumeric())
        && word.chars().all(|letter| letter.is_ascii_alphanumeric() || "+._:=~-".contains(letter))
        && !word.ends_with(".deb")
        && !word.ends_with(".rpm")
        && !word.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    struct Case {
        before: &'static [&'static str],
        script: &'static [&'static str],
        packages: &'static [&'static str],
        setup: &'static [&'static str],
        verify: &'static [&'static str],
        dropped: &'static [&'static str],
    }

    const NONE: &[&str] = &[];

    fn check(case: &Case) {
        let sorted = sort(&texts(case.before), &texts(case.script));
        let context = format!("{:?} {:?}", case.before, case.script);
        assert_eq!(sorted.packages, case.packages, "packages of {context}");
        assert_eq!(sorted.setup, case.setup, "setup of {context}");
        assert_eq!(sorted.verify, case.verify, "verify of {context}");
        let dropped: Vec<&str> = sorted.dropped.iter().map(|dropped| dropped.line.as_str()).collect();
        assert_eq!(dropped, case.dropped, "dropped of {context}");
    }

    #[test]
    fn packages_are_baked_only_where_that_changes_nothing() {
        let cases = [
            Case {
                before: &[
                    "apt-get update -qq && apt-get install -y -qq --no-install-recommends git libpq-dev > /dev/null 2>&1",
                    "pip install tox",
                ],
                script: &["tox"],
                packages: &["git", "libpq-dev"],
                setup: &["pip install tox"],
                verify: &["tox"],
                dropped: NONE,
            },
            Case {
                before: &["apk add --no-cache --virtual .deps build-base git"],
                script: &["make test"],
                packages: &["build-base", "git"],
                setup: NONE,
                verify: &["make test"],
                dropped: NONE,
            },
            Case {
                before: &["apt-get update", "apt-get install -y $PACKAGES"],
                script: &["make test"],
                packages: NONE,
                setup: &["apt-get update", "apt-get install -y $PACKAGES"],
                verify: &["make test"],
                dropped: NONE,
            },
            Case {
                before: &["curl -sL https://deb.nodesource.com/setup_18.x | bash -", "apt-get install -y nodejs"],
                script: &["npm test"],
                packages: NONE,
                setup: &["curl -sL https://deb.nodesource.com/setup_18.x | bash -", "apt-get install -y nodejs"],
                verify: &["npm test"],
                dropped: NONE,
            },
            Case {
                before: &["apt-get update && apt-get install -y git && pip install tox"],
                script: &["tox"],
                packages: NONE,
                setup: &["apt-get update && apt-get install -y git && pip install tox"],
                verify: &["tox"],
                dropped: NONE,
            },
            Case {
                before: &["apt-get update\napt-get install -y \\\n  git \\\n  cmake\npip install tox\n"],
                script: &["tox"],
                packages: &["git", "cmake"],
                setup: &["pip install tox"],
                verify: &["tox"],
                dropped: NONE,
            },
            Case {
                before: &["apt-get install -y -t bookworm-backports git"],
                script: &["tox"],
                packages: NONE,
                setup: &["apt-get install -y -t bookworm-backports git"],
                verify: &["tox"],
                dropped: NONE,
            },
        ];
        cases.iter().for_each(check);
    }

    #[test]
    fn what_changes_the_shell_happens_before_verify_too() {
        let cases = [
            Case {
                before: &[
                    "cd server",
                    "export A=1",
                    "python -m venv venv && . venv/bin/activate",
                    "pip install -r requirements.txt",
                ],
                script: &["pytest"],
                packages: NONE,
                setup: &[
                    "cd server",
                    "export A=1",
                    "python -m venv venv && . venv/bin/activate",
                    "pip install -r requirements.txt",
                ],
                verify: &["cd server", "export A=1", ". venv/bin/activate", "pytest"],
                dropped: NONE,
            },
            Case {
                before: &["cmake -S . -B build && cd build && make"],
                script: &["ctest && cd .. && ./test.sh"],
                packages: NONE,
                setup: &["cmake -S . -B build && cd build && make"],
                verify: &["cd build", "ctest && cd .. && ./test.sh"],
                dropped: NONE,
            },
            Case {
                before: &["if [ -n \"$X\" ]; then\n  export V=$X\nfi"],
                script: &["make test"],
                packages: NONE,
                setup: &["if [ -n \"$X\" ]; then\n  export V=$X\nfi"],
                verify: &["if [ -n \"$X\" ]; then\n  export V=$X\nfi", "make test"],
                dropped: NONE,
            },
        ];
        cases.iter().for_each(check);
    }

    #[test]
    fn what_must_not_run_is_dropped_with_its_reason() {
        let cases = [
            Case {
                before: &[
                    "which ssh-agent || ( apt-get update -y && apt-get install openssh-client -y )",
                    "eval $(ssh-agent -s)",
                    "mkdir -p ~/.ssh && chmod 700 ~/.ssh",
                    "docker login -u a -p b",
                    "git config --global user.email a@b.c && npm ci",
                ],
                script: &["npm test", "npm version patch", "git push origin main"],
                packages: NONE,
                setup: &["npm ci"],
                verify: &["npm test"],
                dropped: &[
                    "which ssh-agent || ( apt-get update -y && apt-get install openssh-client -y )",
                    "eval $(ssh-agent -s)",
                    "mkdir -p ~/.ssh",
                    "chmod 700 ~/.ssh",
                    "docker login -u a -p b",
                    "git config --global user.email a@b.c",
                    "npm version patch",
                    "git push origin main",
                ],
            },
            Case {
                before: NONE,
                script: &["mvn -B deploy"],
                packages: NONE,
                setup: NONE,
                verify: &["mvn -B test"],
                dropped: &["mvn -B deploy"],
            },
            Case {
                before: NONE,
                script: &["if true; then npm test; git push; fi"],
                packages: NONE,
                setup: NONE,
                verify: &["if true; then npm test; git push; fi"],
                dropped: NONE,
            },
        ];
        cases.iter().for_each(check);
    }

    #[test]
    fn dependency_installation_at_the_front_of_the_script_is_setup() {
        let cases = [
            Case {
                before: NONE,
                script: &["cd Backend", "npm install", "npm test", "npm install -g x"],
                packages: NONE,
                setup: &["cd Backend", "npm install"],
                verify: &["cd Backend", "npm test", "npm install -g x"],
                dropped: NONE,
            },
            Case {
                before: NONE,
                script: &["cp a b", "npm install", "npm test"],
                packages: NONE,
                setup: NONE,
                verify: &["cp a b", "npm install", "npm test"],
                dropped: NONE,
            },
            Case {
                before: NONE,
                script: &["apt-get update && apt-get install -y ffmpeg", "mix deps.get", "mix ecto.create", "mix test"],
                packages: &["ffmpeg"],
                setup: &["mix deps.get"],
                verify: &["mix ecto.create", "mix test"],
                dropped: NONE,
            },
            Case { before: NONE, script: &["npm ci"], packages: NONE, setup: NONE, verify: &["npm ci"], dropped: NONE },
        ];
        cases.iter().for_each(check);
    }
}
