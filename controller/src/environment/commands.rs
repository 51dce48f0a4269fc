//! CI's lines, sorted: OS packages go into the image, the installation of dependencies into `setup`, the rest of the
//! job's script into `verify`; what must not run is dropped with its reason. Order and shell meaning stay.

use std::collections::{BTreeMap, BTreeSet};

use super::Dropped;
use super::follow::Follower;
use super::purpose::{self, Purpose};
use super::shell::{self, Script, Unit};

/// The sorted lines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Sorted {
    pub(super) packages: Vec<String>,
    pub(super) setup: Vec<String>,
    pub(super) verify: Vec<String>,
    /// Those lines of `setup` that another job lends.
    pub(super) borrowed: Vec<String>,
    /// Those lines of `setup` that make or fill a database.
    pub(super) database: Vec<String>,
    pub(super) dropped: Vec<Dropped>,
    pub(super) notes: Vec<String>,
    /// Whether dependencies are installed anywhere.
    pub(super) installs: bool,
    /// The most telling thing that `verify` does.
    pub(super) checks: Option<Purpose>,
    /// Every command, with those that scripts of the repository run.
    pub(super) commands: Vec<Vec<String>>,
    /// Where each kind of fact stands first: the number of an entry, those of `before_script` before those of `script`.
    pub(super) first: BTreeMap<&'static str, usize>,
}

/// A line, or a block that must stay in one piece.
struct Piece {
    text: String,
    units: Vec<Unit>,
    plain: bool,
    /// Whether it leaves something running, which ends with its container.
    leaves_running: bool,
    /// The number of its entry.
    entry: usize,
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

/// What earlier lines did that changes what later ones mean.
#[derive(Default)]
struct Seen {
    /// A line added a place that packages come from.
    foreign_packages: bool,
    /// Another repository was cloned.
    cloned: bool,
    /// The shell stands in it.
    in_clone: bool,
}

/// Sorts the lines of `before_script` and `script`. `files`: what is known of the repository.
pub(super) fn sort(before: &[String], script: &[String], files: &BTreeMap<String, String>) -> Sorted {
    let mut sorted = Sorted::default();
    let mut follower = Follower::new(files);
    let first = pieces(before, 0, &mut follower, Vec::new());
    let mut script = pieces(script, before.len(), &mut follower, first);
    let mut seen = Seen::default();
    for piece in &mut script {
        decide(piece, &mut seen, &mut sorted);
    }
    let mut names = BTreeSet::new();
    sorted.packages.retain(|name| names.insert(name.clone()));
    let keeps = |piece: &Piece, purpose: Purpose| piece.fate == Fate::Keep && piece.purposes().contains(&purpose);
    sorted.installs = script.iter().any(|piece| keeps(piece, Purpose::Dependencies));
    for unit in script.iter().filter(|piece| piece.fate != Fate::Gone).flat_map(|piece| &piece.units) {
        sorted.commands.extend(unit.commands.iter().chain(unit.inner.iter().flat_map(|unit| &unit.commands)).cloned());
    }
    let needs_lists = script.iter().any(|piece| piece.fate == Fate::Keep && piece.installs());
    let (before, script): (Vec<Piece>, Vec<Piece>) = script.into_iter().partition(|piece| piece.entry < before.len());
    let (early, rest) = early(script);
    // A database in the box itself lives as long as its container.
    let local = before.iter().chain(&early).any(Piece::starts_daemon);
    let stays = |piece: &&Piece| piece.fate == Fate::Keep || (needs_lists && piece.fate == Fate::Refresh);
    for piece in before.iter().chain(&early).filter(stays) {
        sorted.first.entry("setup").or_insert(piece.entry);
        sorted.setup.push(piece.text.clone());
        if keeps(piece, Purpose::Database) {
            sorted.first.entry("database").or_insert(piece.entry);
            sorted.database.push(piece.text.clone());
        }
        // `setup` and `verify` run in two shells: what changes the shell itself has to happen in both.
        sorted.verify.extend(piece.state(local));
    }
    let rest: Vec<&Piece> = rest.iter().filter(stays).collect();
    sorted.checks = rest.iter().map(|piece| piece.purpose()).max();
    if rest.is_empty() {
        sorted.verify.clear();
    }
    sorted.first.extend(rest.first().map(|piece| ("verify", piece.entry)));
    sorted.verify.extend(rest.iter().map(|piece| piece.text.clone()));
    sorted
}

/// Cuts blocks of several lines into lines where that changes nothing; leaves out comments.
fn pieces(entries: &[String], first: usize, follower: &mut Follower<'_>, mut pieces: Vec<Piece>) -> Vec<Piece> {
    for (entry, text) in entries.iter().enumerate().map(|(number, text)| (first + number, text)) {
        let Script { units, plain, leaves_running } = follower.split(text);
        if !plain {
            let text = text.trim_end().to_owned();
            pieces.push(Piece { text, units, plain, leaves_running, entry, fate: Fate::Keep });
            continue;
        }
        let mut line: Vec<Unit> = Vec::new();
        for unit in units {
            // The preparation of a database is told apart from the tests behind it.
            let is_database = |unit: &Unit| purpose::of_unit(unit) == Purpose::Database;
            if purpose::of_unit(&unit) >= Purpose::Lint && !line.is_empty() && line.iter().all(is_database) {
                pieces.extend(Piece::of_line(std::mem::take(&mut line), entry));
            }
            let ends = unit.ends_line;
            line.push(unit);
            if ends {
                pieces.extend(Piece::of_line(std::mem::take(&mut line), entry));
            }
        }
        pieces.extend(Piece::of_line(line, entry));
    }
    pieces
}

impl Piece {
    fn of_line(units: Vec<Unit>, entry: usize) -> Option<Piece> {
        if units.iter().all(|unit| unit.commands.is_empty()) {
            return None;
        }
        let text = shell::join(&units.iter().collect::<Vec<_>>());
        Some(Piece { text, units, plain: true, leaves_running: false, entry, fate: Fate::Keep })
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

    /// Whether it starts something that has to run while the tests do.
    fn starts_daemon(&self) -> bool {
        let starts = |unit: &Unit| unit.commands.iter().any(|words| purpose::starts_daemon(words));
        self.fate == Fate::Keep && (self.leaves_running || self.units.iter().any(starts))
    }

    /// The part that changes the shell itself, and what a daemon in the box needs.
    fn state(&self, local: bool) -> Option<String> {
        let repeats = |unit: &&Unit| match purpose::of_unit(unit) {
            Purpose::State => true,
            Purpose::Database => local,
            _ => false,
        };
        let states: Vec<&Unit> = self.units.iter().filter(repeats).collect();
        match (states.is_empty(), self.plain) {
            (true, _) => self.leaves_running.then(|| self.text.clone()),
            (false, true) => Some(shell::join(&states)),
            (false, false) => Some(self.text.clone()),
        }
    }
}

/// Says why a unit must not run, and keeps in mind where the shell stands.
fn banned(unit: &Unit, seen: &mut Seen) -> Option<&'static str> {
    for words in &unit.commands {
        let word = |at: usize| words.get(at).map(String::as_str).unwrap_or_default();
        match (word(0), word(1)) {
            ("git", "clone") => seen.cloned = true,
            ("cd" | "pushd", to) => {
                seen.in_clone = seen.cloned && !to.starts_with("..") && !to.contains("CI_PROJECT_DIR")
            }
            ("popd", _) => seen.in_clone = false,
            _ => {}
        }
    }
    match purpose::of_unit(unit) {
        // In another repository that the job cloned, git changes nothing of the project.
        Purpose::Forbidden(purpose::Ban::GitRemote) if seen.in_clone && !unit.text.contains("push") => None,
        Purpose::Forbidden(ban) => Some(ban.reason()),
        _ => None,
    }
}

/// Decides what becomes of one piece.
fn decide(piece: &mut Piece, seen: &mut Seen, sorted: &mut Sorted) {
    let reasons: Vec<Option<&'static str>> = piece.units.iter().map(|unit| banned(unit, seen)).collect();
    let known = sorted.dropped.len();
    if piece.plain {
        drop_units(piece, reasons, sorted);
        send_nothing(piece, sorted);
    } else if let Some(reason) = reasons.into_iter().flatten().next() {
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
    if sorted.dropped.len() > known {
        sorted.first.entry("dropped").or_insert(piece.entry);
    }
    if piece.fate == Fate::Gone {
        return;
    }
    let purposes = piece.purposes();
    seen.foreign_packages |= purposes.contains(&Purpose::PackageSource);
    if purposes.iter().all(|purpose| *purpose == Purpose::PackageLists) {
        piece.fate = Fate::Refresh;
    } else if piece.installs() {
        let only_packages = purposes.iter().all(|purpose| matches!(purpose, Purpose::PackageLists | Purpose::Packages));
        let names =
            if piece.plain && only_packages && !seen.foreign_packages { package_names(&piece.units) } else { None };
        match names {
            Some(names) => {
                sorted.first.entry("packages").or_insert(piece.entry);
                sorted.packages.extend(names);
                piece.fate = Fate::Baked;
            }
            None => sorted.notes.push(unbaked(piece, only_packages, seen.foreign_packages)),
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
fn drop_units(piece: &mut Piece, mut reasons: Vec<Option<&'static str>>, sorted: &mut Sorted) {
    let mut kept = Vec::new();
    let units = std::mem::take(&mut piece.units);
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

/// Takes out of a script what comes before everything else: the installation of dependencies at its front, and the
/// preparation of a database, as long as nothing stands before it that it could need.
fn early(script: Vec<Piece>) -> (Vec<Piece>, Vec<Piece>) {
    let gone = |piece: &Piece| piece.fate != Fate::Keep;
    let prepares = |piece: &&Piece| gone(piece) || piece.units.iter().all(prepares);
    let run = script.iter().take_while(prepares).count();
    let installs = |piece: &Piece| {
        !gone(piece)
            && piece.purposes().iter().any(|purpose| matches!(purpose, Purpose::Dependencies | Purpose::Database))
    };
    let moved = script.iter().take(run).rposition(installs).map_or(0, |last| last + 1);
    let mut clear = true;
    let (mut early, mut rest) = (Vec::new(), Vec::new());
    for (number, piece) in script.into_iter().enumerate() {
        let database = piece.plain && piece.purposes().iter().all(|purpose| *purpose == Purpose::Database);
        if number < moved || (clear && database && !gone(&piece)) {
            early.push(piece);
        } else {
            clear &= gone(&piece) || matches!(piece.purpose(), Purpose::Trivial | Purpose::Lint);
            rest.push(piece);
        }
    }
    if rest.iter().any(|piece| !gone(piece)) {
        (early, rest)
    } else {
        {
            early.append(&mut rest);
            (Vec::new(), early)
        }
    }
}

/// Whether a command only prepares: installs, makes a database, or puts files in place for that.
fn prepares(unit: &Unit) -> bool {
    let places = |words: &Vec<String>| {
        let name = shell::program(words).into_iter().next().unwrap_or_default();
        matches!(name.as_str(), "cp" | "mv" | "mkdir" | "touch" | "sed" | "chmod" | "ln" | "envsubst" | "echo" | "cat")
    };
    match purpose::of_unit(unit) {
        Purpose::Other => unit.inner.is_empty() && unit.commands.iter().all(places),
        purpose => purpose <= Purpose::Database,
    }
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
                "in" if names.is_empty() && command.iter().any(|word| word == "zypper") => {}
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
                "-t" | "-X" | "-r" | "--repository" | "--allow-untrusted" | "-f" => return None,
                _ if word.starts_with("--target-release") || word.starts_with("--default-release") => return None,
                _ if ["--enablerepo", "--repo", "--from"].iter().any(|option| word.starts_with(option)) => return None,
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
        let sorted = sort(&texts(case.before), &texts(case.script), &BTreeMap::new());
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
    fn databases_are_prepared_at_the_start_wherever_the_script_does_it() {
        let cases = [
            Case {
                before: &["bundle install"],
                script: &["bundle exec rubocop", "bin/rails db:create db:schema:load && bundle exec rspec"],
                packages: NONE,
                setup: &["bundle install", "bin/rails db:create db:schema:load"],
                verify: &["bundle exec rubocop", "bundle exec rspec"],
                dropped: NONE,
            },
            Case {
                before: NONE,
                script: &["cp a.yml b.yml", "python manage.py migrate", "python manage.py test"],
                packages: NONE,
                setup: &["cp a.yml b.yml", "python manage.py migrate"],
                verify: &["python manage.py test"],
                dropped: NONE,
            },
            // What comes before may be what the preparation needs.
            Case {
                before: NONE,
                script: &["make build", "php artisan migrate", "php artisan test"],
                packages: NONE,
                setup: NONE,
                verify: &["make build", "php artisan migrate", "php artisan test"],
                dropped: NONE,
            },
            // A daemon, and the database in it, end with their container.
            Case {
                before: &["service postgresql start", "psql -c 'create database x'", "pip install ."],
                script: &["pytest"],
                packages: NONE,
                setup: &["service postgresql start", "psql -c 'create database x'", "pip install ."],
                verify: &["service postgresql start", "psql -c 'create database x'", "pytest"],
                dropped: NONE,
            },
            Case {
                before: &["Xvfb :99 &", "npm ci"],
                script: &["npm test"],
                packages: NONE,
                setup: &["Xvfb :99 &", "npm ci"],
                verify: &["Xvfb :99 &", "npm test"],
                dropped: NONE,
            },
        ];
        cases.iter().for_each(check);
        let lines = texts(&["rails db:create", "rspec"]);
        let sorted = sort(&[], &lines, &BTreeMap::new());
        assert_eq!((sorted.database, sorted.first.get("verify")), (vec!["rails db:create".to_owned()], Some(&1)));
    }

    #[test]
    fn git_may_do_in_a_clone_what_it_may_not_in_the_project() {
        let cases = [Case {
            before: NONE,
            script: &[
                "git clone https://x/y.git y",
                "git checkout main",
                "cd y",
                "git checkout v1",
                "git push",
                "cd ..",
                "git fetch",
                "make",
            ],
            packages: NONE,
            setup: NONE,
            verify: &["git clone https://x/y.git y", "cd y", "git checkout v1", "cd ..", "make"],
            dropped: &["git checkout main", "git push", "git fetch"],
        }];
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
                setup: &["cp a b", "npm install"],
                verify: &["npm test"],
                dropped: NONE,
            },
            Case {
                before: NONE,
                script: &["run-it", "npm install", "npm test"],
                packages: NONE,
                setup: NONE,
                verify: &["run-it", "npm install", "npm test"],
                dropped: NONE,
            },
            Case {
                before: NONE,
                script: &["apt-get update && apt-get install -y ffmpeg", "mix deps.get", "mix ecto.create", "mix test"],
                packages: &["ffmpeg"],
                setup: &["mix deps.get", "mix ecto.create"],
                verify: &["mix test"],
                dropped: NONE,
            },
            Case { before: NONE, script: &["npm ci"], packages: NONE, setup: NONE, verify: &["npm ci"], dropped: NONE },
        ];
        cases.iter().for_each(check);
    }
}
