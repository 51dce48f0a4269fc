//! Shell text as a list of commands, as far as sorting CI's lines needs it.
//!
//! This is no shell: it finds words, `&&`, `;`, `|` and `||`, and says when there is more (`if`, loops, groups, here
//! documents, background), in which case a text is only ever kept or left out as a whole.

/// A text cut into units that run one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Script {
    /// The units in order.
    pub(super) units: Vec<Unit>,
    /// Whether units are joined by nothing but `&&`, `;` and line ends, so that one can be left out.
    pub(super) plain: bool,
    /// Whether something is left running: `server &`.
    pub(super) leaves_running: bool,
}

/// What stands between two of `&&`, `;` and line end: a command, or some joined by `|` and `||`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Unit {
    /// As written.
    pub(super) text: String,
    /// The words of each command, quotes removed.
    pub(super) commands: Vec<Vec<String>>,
    /// Whether a line ends behind it.
    pub(super) ends_line: bool,
    /// What joins it to the unit behind it: `&&`, `;` or nothing.
    pub(super) joint: &'static str,
    /// Whether `||` stands in it.
    pub(super) has_or: bool,
    /// What it starts in the repository, as far as that is known.
    pub(super) inner: Vec<Unit>,
}

const KEYWORDS: [&str; 12] =
    ["if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac"];

/// Cuts a text into units.
pub(super) fn split(text: &str) -> Script {
    let mut scanner = Scanner { plain: true, ..Scanner::default() };
    let letters: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at < letters.len() {
        at += scanner.step(&letters, at);
    }
    scanner.end_unit("", true);
    let mixed = scanner.units.windows(2).any(|pair| pair[0].joint == "&&" && pair[1].has_or);
    let first_or = scanner.units.iter().any(|unit| unit.has_or && unit.joint == "&&");
    Script { plain: scanner.plain && !mixed && !first_or, units: scanner.units, leaves_running: scanner.leaves_running }
}

#[derive(Default)]
struct Scanner {
    units: Vec<Unit>,
    unit: Unit,
    command: Vec<String>,
    word: String,
    in_word: bool,
    plain: bool,
    leaves_running: bool,
}

impl Scanner {
    /// Takes what stands at `at` and says how many letters that were.
    fn step(&mut self, letters: &[char], at: usize) -> usize {
        let here = letters[at];
        let next = letters.get(at + 1).copied();
        let length = match (here, next) {
            ('\'' | '"' | '`', _) => self.quoted(letters, at),
            ('$', Some('(')) => self.substitution(letters, at),
            ('\\', Some('\n')) => {
                self.end_word();
                2
            }
            ('\\', Some(escaped)) => {
                self.push(escaped);
                2
            }
            ('#', _) if !self.in_word => letters[at..].iter().take_while(|letter| **letter != '\n').count(),
            ('&', Some('&')) => return self.joint("&&", 2, false),
            (';', Some(';')) => {
                self.plain = false;
                return self.joint(";", 2, false);
            }
            (';', _) => return self.joint(";", 1, false),
            ('\n', _) => return self.joint("", 1, true),
            ('|', Some('|')) => {
                self.unit.has_or = true;
                self.end_command();
                2
            }
            ('|', _) => {
                self.end_command();
                1
            }
            ('&', Some('>')) => 2,
            ('&', _) if self.word.ends_with(['>', '<']) => {
                self.push('&');
                1
            }
            ('&', _) => {
                self.plain = false;
                self.leaves_running = true;
                return self.joint(";", 1, false);
            }
            ('<', Some('<')) if letters.get(at + 2) != Some(&'<') => {
                self.plain = false;
                2
            }
            ('(' | ')', _) => {
                self.plain = false;
                self.end_command();
                1
            }
            (space, _) if space.is_whitespace() => {
                self.end_word();
                1
            }
            (letter, _) => {
                self.push(letter);
                1
            }
        };
        self.unit.text.extend(letters.iter().skip(at).take(length.max(1)));
        length.max(1)
    }

    fn push(&mut self, letter: char) {
        self.word.push(letter);
        self.in_word = true;
    }

    fn quoted(&mut self, letters: &[char], at: usize) -> usize {
        let quote = letters[at];
        self.in_word = true;
        let mut length = 1;
        while let Some(letter) = letters.get(at + length) {
            length += 1;
            match letter {
                '\\' if quote != '\'' => {
                    self.word.extend(letters.get(at + length));
                    length += 1;
                }
                letter if *letter == quote => return length.min(letters.len() - at),
                letter => self.word.push(*letter),
            }
        }
        self.plain = false;
        letters.len() - at
    }

    fn substitution(&mut self, letters: &[char], at: usize) -> usize {
        let mut depth = 0;
        let mut length = 0;
        while let Some(letter) = letters.get(at + length) {
            length += 1;
            self.push(*letter);
            match letter {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            if depth == 0 && length > 1 {
                return length;
            }
        }
        self.plain = false;
        length
    }

    fn joint(&mut self, joint: &'static str, length: usize, ends_line: bool) -> usize {
        self.end_unit(joint, ends_line);
        length
    }

    fn end_word(&mut self) {
        if !self.in_word {
            return;
        }
        let word = std::mem::take(&mut self.word);
        self.in_word = false;
        if self.command.is_empty()
            && (KEYWORDS.contains(&word.as_str()) || matches!(word.as_str(), "{" | "}" | "!" | "function"))
        {
            self.plain &= word == "!";
        } else {
            self.command.push(word);
        }
    }

    fn end_command(&mut self) {
        self.end_word();
        let command = std::mem::take(&mut self.command);
        if !command.is_empty() {
            self.unit.commands.push(command);
        }
    }

    fn end_unit(&mut self, joint: &'static str, ends_line: bool) {
        self.end_command();
        let mut unit = std::mem::take(&mut self.unit);
        let dangling = ends_line && unit.text.trim().is_empty();
        if let Some(last) = self.units.last_mut().filter(|_| dangling) {
            // A line that ends with `&&` goes on in the next one.
            last.ends_line |= last.joint != "&&";
            return;
        }
        if unit.commands.is_empty() && unit.text.trim().is_empty() {
            return;
        }
        unit.text = unit.text.trim().to_owned();
        unit.joint = joint;
        unit.ends_line = ends_line;
        self.units.push(unit);
    }
}

/// Joins units into a line again.
pub(super) fn join(units: &[&Unit]) -> String {
    let mut line = String::new();
    for (at, unit) in units.iter().enumerate() {
        line.push_str(&unit.text);
        if at + 1 < units.len() {
            line.push_str(if unit.joint == ";" { "; " } else { " && " });
        }
    }
    line
}

/// Takes off what stands in front of a program without changing what it is: variables, `sudo`, `bundle exec`, paths.
pub(super) fn program(words: &[String]) -> Vec<String> {
    let mut words: Vec<String> = bare(words).into_iter().map(str::to_owned).collect();
    if let Some(first) = words.first_mut().filter(|first| !is_assignment(first)) {
        let name = base_name(first).to_owned();
        *first = match name.as_str() {
            "mvnw" => "mvn".to_owned(),
            "gradlew" => "gradle".to_owned(),
            name if is_numbered(name, "python") => "python".to_owned(),
            name if is_numbered(name, "pip") => "pip".to_owned(),
            _ => name,
        };
    }
    words
}

fn is_python(name: &str) -> bool {
    name == "py" || is_numbered(name, "python") || is_numbered(name, "pypy")
}

/// Whether a name is that of a program, with or without a version: `python3.11`.
fn is_numbered(name: &str, program: &str) -> bool {
    name.strip_prefix(program)
        .is_some_and(|rest| rest.chars().all(|letter| letter.is_ascii_digit() || letter == '.') && !rest.ends_with('.'))
}

/// The command with its program in front, as it is written there: `./tests/run.sh`.
pub(super) fn bare(words: &[String]) -> Vec<&str> {
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    for _ in 0..8 {
        let Some(first) = words.first().copied() else { break };
        let second = words.get(1).copied().unwrap_or_default();
        let skip = match (base_name(first), second) {
            _ if is_assignment(first) && words.len() > 1 => 1,
            (
                "time" | "exec" | "command" | "nohup" | "npx" | "bunx" | "env" | "xvfb-run" | "nice" | "spring"
                | "sudo" | "catchsegv" | "stdbuf" | "dbus-run-session" | "xargs" | "retry" | "winpty" | "gosu"
                | "su-exec" | "unbuffer",
                _,
            ) => 1 + options(&words[1..]),
            ("symfony", "php") => 1,
            ("php" | "phpdbg", option) if option.starts_with('-') && words.len() > 2 => {
                1 + words[1..].iter().take_while(|word| word.starts_with('-') || word.contains('=')).count()
            }
            ("opam", "exec") => 2 + options(&words[2..]),
            ("conda" | "mamba" | "micromamba", "run") => 2 + options(&words[2..]),
            ("poetry" | "pipenv" | "pdm" | "hatch" | "rye" | "uv", "run")
                if words
                    .get(2)
                    .is_some_and(|word| *word == "tests" || word.starts_with("test") && !word.contains('.')) =>
            {
                0
            }
            ("timeout", _) => 2 + options(&words[1..]),
            (
                "bundle" | "poetry" | "pipenv" | "uv" | "pdm" | "hatch" | "rye" | "pnpm" | "yarn" | "npm",
                "exec" | "run",
            ) if !matches!(base_name(first), "pnpm" | "yarn" | "npm") || second == "exec" => 2 + options(&words[2..]),
            ("pnpm" | "yarn", "dlx") => 2,
            ("composer", "exec") => 2 + options(&words[2..]),
            ("coverage", "run") => 2 + options(&words[2..]).saturating_sub(usize::from(words.get(2) == Some(&"-m"))),
            ("-m", _) => 1,
            (name, "-m") if is_python(name) => 2,
            (name, option)
                if is_python(name) && option.starts_with('-') && !matches!(option, "-c" | "-V" | "--version") =>
            {
                let skipped = interpreter_options(&words[1..]);
                1 + skipped + usize::from(words.get(1 + skipped) == Some(&"-m"))
            }
            (name, script) if is_python(name) && !script.starts_with('-') && script.contains(['/', '.']) => 1,
            ("php" | "ruby" | "node" | "bash" | "sh", script)
                if !script.starts_with('-') && script.contains(['/', '.']) || script == "artisan" =>
            {
                1
            }
            ("bash" | "sh", "-x" | "-e" | "-ex" | "-xe" | "-eux") => 2,
            _ => 0,
        };
        if skip == 0 || skip >= words.len() {
            break;
        }
        words.drain(..skip);
    }
    words
}

/// How many options of Python stand in front of its script or of `-m`.
fn interpreter_options(words: &[&str]) -> usize {
    let mut count = 0;
    while let Some(word) = words.get(count).filter(|word| word.starts_with('-') && **word != "-m") {
        count += if matches!(*word, "-W" | "-X") { 2 } else { 1 };
    }
    count.min(words.len())
}

/// How many options (with what belongs to them, and assignments) stand at the front.
fn options(words: &[&str]) -> usize {
    let valued =
        ["-u", "-g", "-n", "-s", "--user", "-p", "--group", "--with", "--extra", "-e", "--env", "--server-args"];
    let mut count = 0;
    while let Some(word) = words.get(count) {
        match *word {
            word if valued.contains(&word) && words.len() > count + 2 => count += 2,
            "--" => return count + 1,
            word if word.starts_with('-') || is_assignment(word) => count += 1,
            _ => break,
        }
    }
    count
}

/// Whether a word sets a variable: `A=b`.
pub(super) fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| is_name(name))
}

/// Whether a word can name a variable.
pub(super) fn is_name(name: &str) -> bool {
    let mut letters = name.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// The last part of a path; only a path that starts as one counts.
pub(super) fn base_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_cut_at_and_semicolon_and_line_end() {
        let table: [(&str, bool, &[&str]); 16] = [
            ("npm ci", true, &["npm ci"]),
            ("cd a && npm ci; npm test", true, &["cd a", "npm ci", "npm test"]),
            ("a\nb # c\n\n# d\ne", true, &["a", "b # c", "# d", "e"]),
            ("echo 'a && b'", true, &["echo 'a && b'"]),
            ("echo \"a; b\" && c", true, &["echo \"a; b\"", "c"]),
            ("eval $(ssh-agent -s)", true, &["eval $(ssh-agent -s)"]),
            ("a | b || true", true, &["a | b || true"]),
            ("a && b || c", false, &["a", "b || c"]),
            ("a &", false, &["a"]),
            ("a > /dev/null 2>&1", true, &["a > /dev/null 2>&1"]),
            ("if a; then b; fi", false, &["if a", "then b", "fi"]),
            ("(a && b)", false, &["(a", "b)"]),
            ("cat <<EOF\nx\nEOF", false, &["cat <<EOF", "x", "EOF"]),
            ("apt-get install \\\n  a b", true, &["apt-get install \\\n  a b"]),
            ("a &&\n b", true, &["a", "b"]),
            ("echo 'unclosed", false, &["echo 'unclosed"]),
        ];
        for (text, plain, expected) in table {
            let script = split(text);
            let units: Vec<&str> = script.units.iter().map(|unit| unit.text.as_str()).collect();
            assert_eq!((script.plain, units.as_slice()), (plain, expected), "{text}");
        }
    }

    #[test]
    fn the_program_is_found_behind_what_starts_it() {
        let table = [
            ("RAILS_ENV=test bin/rspec", "rspec"),
            ("bundle exec rake test", "rake test"),
            ("sudo -E apt-get install -y git", "apt-get install -y git"),
            ("python3 -m pytest -q", "pytest -q"),
            ("coverage run -m pytest", "pytest"),
            ("poetry run pytest", "pytest"),
            ("npx --yes jest", "jest"),
            ("php artisan test", "artisan test"),
            ("php vendor/bin/phpunit", "phpunit"),
            ("./mvnw $OPTS test", "mvn $OPTS test"),
            ("XDEBUG_MODE=coverage ./vendor/bin/simple-phpunit tests/", "simple-phpunit tests/"),
            ("time cargo test --all", "cargo test --all"),
            ("timeout 10 go test ./...", "go test ./..."),
            ("npm run test", "npm run test"),
            ("yarn exec jest", "jest"),
            ("bash ./scripts/test.sh", "test.sh"),
            ("A=b", "A=b"),
            ("HOME=\"$(pwd)/.gradle\"", "HOME=$(pwd)/.gradle"),
            ("", ""),
        ];
        for (text, expected) in table {
            let script = split(text);
            let words = script.units.first().and_then(|unit| unit.commands.first()).cloned().unwrap_or_default();
            assert_eq!(program(&words).join(" "), expected, "{text}");
        }
    }
}
