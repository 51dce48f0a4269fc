//! The repository's own rules, as tests: what linters cannot check. CONTRIBUTING.md gives the reasons.
//!
//! Each rule is a function from a file's path and text to complaints; a test applies it to the tree, and `controls`
//! shows for each that it finds what it is for. Needs nothing but std.

use std::path::Path;

/// Code lines of a file, tests not counted.
const FILE_LINES: usize = 400;
/// Code lines of a function.
const FUNCTION_LINES: usize = 70;
/// Lines of the comment that opens a file.
const OPENING_LINES: usize = 10;

/// Plain functions of values; a folder stands for every file in it.
const DECIDERS: &[&str] = &[
    "shared/src/admission.rs",
    "shared/src/assignment.rs",
    "shared/src/attempt.rs",
    "shared/src/environment.rs",
    "shared/src/job.rs",
    "shared/src/mask.rs",
    "shared/src/mask/",
    "shared/src/protocol.rs",
    "shared/src/resources.rs",
    "shared/src/units.rs",
    "controller/src/environment.rs",
    "controller/src/environment/",
    "controller/src/expiry.rs",
    "controller/src/hosts/load.rs",
    "controller/src/quarantine.rs",
    "controller/src/reconcile/snapshot.rs",
    "controller/src/gates/difference.rs",
    "controller/src/jobs/reports.rs",
    "controller/src/logs/segments.rs",
    "controller/src/retries.rs",
    "controller/src/scheduler.rs",
    "controller/src/store/bounds.rs",
    "controller/src/store/etcd/versions.rs",
    "controller/src/scheduler/",
    "controller/src/timers.rs",
    "agent-host/src/assignments.rs",
    "agent-host/src/attempt/course.rs",
    "agent-host/src/attempt/scripts.rs",
    "agent-host/src/attempt/verdict.rs",
    "agent-host/src/caches/rules.rs",
];
/// What a decider does not know: waiting, clocks, chance, the machine, maps without order.
const IMPURE: [&str; 14] = [
    "async fn",
    ".await",
    "tokio::",
    "Clock",
    "Instant::now",
    "SystemTime",
    "rand::",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "HashMap",
    "HashSet",
];

struct SourceFile {
    path: String,
    text: String,
}

/// Reads every text file of the repository whose name ends in one of these.
fn files(endings: &[&str]) -> Vec<SourceFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the repository can be read") {
            let path = entry.expect("an entry of the folder can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_symlink() || name == "target" || (name.starts_with('.') && name != ".ci") {
                continue;
            } else if path.is_dir() {
                folders.push(path);
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let relative = path.strip_prefix(root).expect("it lies in the repository").display().to_string();
                let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{relative}: {error}"));
                found.push(SourceFile { path: relative, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no file ends in {endings:?}");
    found
}

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Applies a rule to all Rust files of the members and shows every complaint at once.
fn each_rust_file(rule: impl Fn(&str, &str) -> Vec<String>) {
    assert_none(files(&[".rs"]).iter().flat_map(|file| rule(&file.path, &file.text)));
}

fn assert_none(complaints: impl IntoIterator<Item = String>) {
    let complaints: Vec<String> = complaints.into_iter().collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Replaces comments and the inside of texts and characters by spaces, so that lines and braces stay where they are.
fn code_only(text: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let end = end_of_literal(&chars, at);
        if end == at {
            at += 1;
            continue;
        }
        for hidden in &mut chars[at..end] {
            if *hidden != '\n' {
                *hidden = ' ';
            }
        }
        at = end;
    }
    chars.into_iter().collect()
}

/// Returns where the comment, text or character that begins here ends; the same place if none does.
fn end_of_literal(chars: &[char], at: usize) -> usize {
    let is = |offset: usize, wanted: char| chars.get(at + offset) == Some(&wanted);
    let find = |from: usize, end: &[char]| {
        let place = chars[from.min(chars.len())..].windows(end.len()).position(|window| window == end);
        place.map_or(chars.len(), |place| from + place)
    };
    let in_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    if is(0, '/') && is(1, '/') {
        return find(at, &['\n']);
    }
    if is(0, '/') && is(1, '*') {
        return (find(at + 2, &['*', '/']) + 2).min(chars.len());
    }
    if is(0, 'r') && (!in_word || chars[at - 1] == 'b') {
        let hashes = chars[at + 1..].iter().take_while(|char| **char == '#').count();
        if is(1 + hashes, '"') {
            let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            return (find(at + 2 + hashes, &end) + end.len()).min(chars.len());
        }
    }
    if is(0, '"') || (is(0, '\'') && (is(1, '\\') || is(2, '\''))) {
        let mut end = at + 1;
        while end < chars.len() && chars[end] != chars[at] {
            end += if chars[end] == '\\' { 2 } else { 1 };
        }
        return (end + 1).min(chars.len());
    }
    at
}

/// Cuts off the unit tests at the end of a file, and empties a file that is nothing else.
fn without_tests<'a>(path: &str, text: &'a str) -> &'a str {
    if is_test(path) {
        return "";
    }
    let mut from = 0;
    while let Some(place) = text[from..].find("#[cfg(test)]") {
        let after = &text[from + place + "#[cfg(test)]".len()..];
        if after.trim_start().starts_with("mod ") {
            return &text[..from + place];
        }
        from = text.len() - after.len();
    }
    text
}

fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs") || path.contains("/benches/")
}

fn is_code(line: &str) -> bool {
    !line.trim().is_empty()
}

// ---- the rules --------------------------------------------------------------------------------------------------------

fn opening(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().take_while(|line| line.starts_with("//!")).count();
    match lines {
        0 => vec![format!("{path}:1: begin with `//!` and say why the file exists")],
        1..=OPENING_LINES => vec![],
        _ => vec![format!("{path}:{lines}: the opening comment has {lines} lines, {OPENING_LINES} are the most")],
    }
}

fn file_size(path: &str, text: &str) -> Vec<String> {
    let code = code_only(without_tests(path, text));
    let lines = code.lines().filter(|line| is_code(line)).count();
    if lines <= FILE_LINES {
        return vec![];
    }
    vec![format!("{path}: {lines} lines of code, {FILE_LINES} are the most: split it along what changes together")]
}

fn function_size(path: &str, text: &str) -> Vec<String> {
    let code = code_only(without_tests(path, text));
    let mut complaints = Vec::new();
    for (start, _) in code.match_indices("fn ") {
        let alone = !code[..start].ends_with(|before: char| before.is_alphanumeric() || before == '_');
        let name: String = code[start + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if !alone || name.is_empty() {
            continue;
        }
        let lines = body(&code[start..]).lines().filter(|line| is_code(line)).count();
        if lines > FUNCTION_LINES {
            let line = code[..start].matches('\n').count() + 1;
            complaints.push(format!("{path}:{line}: {name} has {lines} lines, {FUNCTION_LINES} are the most"));
        }
    }
    complaints
}

/// Returns a function from its `fn` to the brace that closes it; one without a body is empty.
fn body(code: &str) -> &str {
    let mut depth = 0;
    let mut brackets = 0;
    for (place, char) in code.char_indices() {
        match char {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if depth == 0 && brackets == 0 => return "",
            '{' => depth += 1,
            '}' if depth == 1 => return &code[..=place],
            '}' => depth -= 1,
            _ => {}
        }
    }
    code
}

fn unfinished(path: &str, text: &str) -> Vec<String> {
    let words = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["HA", "CK"], ["todo", "!"], ["unimplemented", "!"]]
        .map(|word| word.concat());
    lines_with(path, text, &words, "finish it, or write an issue")
}

fn purity(path: &str, text: &str) -> Vec<String> {
    let decides = DECIDERS.iter().any(|known| path == *known || (known.ends_with('/') && path.starts_with(known)));
    if !decides {
        return vec![];
    }
    let code = code_only(without_tests(path, text));
    lines_with(path, &code, &IMPURE.map(String::from), "a decider is a plain function of values: pass in what it needs")
}

fn shortcuts(path: &str, text: &str) -> Vec<String> {
    let code = code_only(text);
    let mut complaints = lines_with(path, &code, &["[allow(".into()], "write #[expect(lint, reason = \"..\")]");
    complaints.extend(lines_with(path, &code, &["[ignore".into()], "a test that is not run proves nothing"));
    if path.ends_with("/mod.rs") {
        complaints.push(format!("{path}:1: write `name.rs` beside the folder `name/`"));
    }
    complaints
}

fn patience(path: &str, text: &str) -> Vec<String> {
    if !path.contains("/tests/") {
        return vec![];
    }
    let why = "wait for a state, with a bound; where time itself is meant, say so above it: `// sleep: why`";
    let excused = |line: usize| {
        line > 1 && text.lines().nth(line - 2).is_some_and(|above| above.trim().starts_with("// sleep: "))
    };
    let code = code_only(text);
    let found = lines_with(path, &code, &["sleep(".into()], why);
    let line = |complaint: &String| complaint.split(':').nth(1).and_then(|line| line.parse().ok()).unwrap_or(0);
    found.into_iter().filter(|complaint| !excused(line(complaint))).collect()
}

fn private_places(path: &str, text: &str) -> Vec<String> {
    let places = [["/wo", "rk/"], ["../sha", "red/"]].map(|place| place.concat());
    // `<key>/…` is a part of some other path.
    lines_with(path, &text.replace(">/", "> "), &places, "a path of one machine: nobody else has it")
}

/// Complains about each line that holds one of the words; a word at whose ends letters stand is not held by longer ones.
fn lines_with(path: &str, text: &str, words: &[String], advice: &str) -> Vec<String> {
    let of_word = |char: char| char.is_alphanumeric() || char == '_';
    let holds = |line: &str, word: &str| {
        line.match_indices(word).any(|(start, _)| {
            let (before, after) = (&line[..start], &line[start + word.len()..]);
            !(word.starts_with(of_word) && before.ends_with(of_word)
                || word.ends_with(of_word) && after.starts_with(of_word))
        })
    };
    let complain = |(index, line): (usize, &str)| {
        let found = words.iter().find(|word| holds(line, word))?;
        Some(format!("{path}:{}: `{found}`: {advice}", index + 1))
    };
    text.lines().enumerate().filter_map(complain).collect()
}

/// Complains about each dependency in a section of a Cargo.toml whose name begins with one of these.
fn dependencies(path: &str, text: &str, section: &str, forbidden: &[&str]) -> Vec<String> {
    let mut inside = false;
    let mut complaints = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut name = line.split(['.', '=', ' ']).next().unwrap_or_default();
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_end().trim_end_matches(']');
            inside = header == section;
            name = header.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')).unwrap_or_default();
        } else if !inside {
            continue;
        }
        if forbidden.iter().any(|forbidden| name == *forbidden || name.starts_with(&format!("{forbidden}-"))) {
            complaints.push(format!(
                "{path}:{}: {name} in [{section}]: dependencies go one way, see CONTRIBUTING.md",
                index + 1
            ));
        }
    }
    complaints
}

fn inherits_lints(path: &str, text: &str) -> Vec<String> {
    if text.contains("[lints]\nworkspace = true") {
        vec![]
    } else {
        vec![format!("{path}: add `[lints]` with `workspace = true`")]
    }
}

/// Returns the fields of a struct or of all variants of an enum, as the source spells them.
fn fields(source: &str, name: &str) -> Vec<String> {
    let declared = [format!("struct {name} {{"), format!("enum {name} {{")];
    let start = declared.iter().find_map(|text| source.find(text)).unwrap_or_else(|| panic!("there is no {name}"));
    let declaration = code_only(body(&source[start..]));
    let field = |line: &str| {
        let (name, _) = line.trim().strip_prefix("pub ").unwrap_or(line.trim()).split_once(": ")?;
        name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_').then(|| name.to_owned())
    };
    let found: Vec<String> = declaration.lines().filter_map(field).collect();
    assert!(!found.is_empty(), "{name} has no fields");
    found
}

fn unmentioned(page: &str, text: &str, names: &[String]) -> Vec<String> {
    let mentioned = |name: &&String| !text.contains(&format!("`{name}`"));
    names.iter().filter(mentioned).map(|name| format!("{page}: does not mention `{name}`")).collect()
}

/// Complains about links and paths of a page that lead nowhere. `exists` answers for a path from the root.
fn dead_ends(path: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut complaints = Vec::new();
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    for (index, line) in text.lines().enumerate() {
        for link in line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !link.is_empty() && !link.contains("://") && !exists(&joined(folder, link)) {
                complaints.push(format!("{path}:{}: the link {link} leads nowhere", index + 1));
            }
        }
        for quoted in line.split('`').skip(1).step_by(2) {
            let source =
                ["shared/", "proto/", "controller/", "agent-host/"].iter().any(|crate_| quoted.starts_with(crate_));
            if source && !quoted.contains(['*', '{', ' ']) && !exists(quoted) {
                complaints.push(format!("{path}:{}: there is no {quoted}", index + 1));
            }
        }
    }
    complaints
}

fn joined(folder: &str, link: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in link.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

// ---- the tree ---------------------------------------------------------------------------------------------------------

#[test]
fn every_source_file_says_at_its_top_why_it_exists() {
    each_rust_file(opening);
}

#[test]
fn no_file_is_too_long_to_hold_in_mind() {
    each_rust_file(file_size);
}

#[test]
fn no_function_is_too_long_to_read_at_once() {
    each_rust_file(function_size);
}

#[test]
fn nothing_is_left_unfinished() {
    let all = files(&[".rs", ".md", ".toml", ".proto", ".sh", ".py", ".yml", ".service", "Dockerfile", "Makefile"]);
    assert_none(all.iter().flat_map(|file| unfinished(&file.path, &file.text)));
}

#[test]
fn deciders_are_plain_functions_of_values() {
    each_rust_file(purity);
    let known: Vec<String> = files(&[".rs"]).into_iter().map(|file| file.path).collect();
    let stands = |decider: &&str| known.iter().any(|path| path.starts_with(*decider));
    let gone = DECIDERS.iter().filter(|decider| !stands(decider));
    assert_none(gone.map(|decider| format!("{decider} stands in the list of deciders and is not there")));
}

#[test]
fn dependencies_go_one_way() {
    let check = |path: &str, section: &str, forbidden: &[&str]| dependencies(path, &read(path), section, forbidden);
    let outside = ["tonic", "prost", "etcd", "bollard", "tokio", "hyper", "reqwest", "redb", "devfleet"];
    assert_none(check("shared/Cargo.toml", "dependencies", &outside));
    assert_none(check("shared/Cargo.toml", "dev-dependencies", &outside));
    assert_none(check("proto/Cargo.toml", "dependencies", &["devfleet-controller", "devfleet-host"]));
    assert_none(check("controller/Cargo.toml", "dependencies", &["devfleet-host", "bollard"]));
    assert_none(check("agent-host/Cargo.toml", "dependencies", &["devfleet-controller", "redb", "etcd"]));
    assert_none(check("agent-host/Cargo.toml", "dev-dependencies", &["devfleet-controller"]));
}

#[test]
fn every_crate_takes_the_workspaces_lints() {
    for member in ["shared", "proto", "controller", "agent-host"] {
        let path = format!("{member}/Cargo.toml");
        assert_none(inherits_lints(&path, &read(&path)));
    }
}

#[test]
fn no_lint_and_no_test_is_switched_off() {
    each_rust_file(shortcuts);
}

#[test]
fn tests_wait_for_states_and_not_for_time() {
    each_rust_file(patience);
}

#[test]
fn nothing_points_to_one_machine() {
    let all =
        files(&[".rs", ".md", ".toml", ".proto", ".sh", ".py", ".yml", ".service", "Dockerfile", "Makefile", "run"]);
    assert_none(all.iter().flat_map(|file| private_places(&file.path, &file.text)));
}

#[test]
fn the_pages_lead_where_they_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    let exists = |path: &str| root.join(path).exists();
    assert_none(files(&[".md"]).iter().flat_map(|page| dead_ends(&page.path, &page.text, exists)));
}

#[test]
fn the_changelog_has_a_place_for_what_comes_next() {
    assert!(read("CHANGELOG.md").lines().any(|line| line == "## [Unreleased]"), "CHANGELOG.md: add `## [Unreleased]`");
}

#[test]
fn every_class_of_failure_stands_in_the_runbook() {
    let source = read("shared/src/attempt.rs");
    let arms = source.lines().filter_map(|line| line.trim().strip_prefix("FailureReason::")?.split_once(" => \""));
    let names: Vec<String> = arms.filter_map(|(_, rest)| rest.split('"').next().map(String::from)).collect();
    assert_eq!(names.len(), devfleet_shared::attempt::FailureReason::ALL.len(), "the names were not all found");
    assert_none(unmentioned("docs/operations.md", &read("docs/operations.md"), &names));
}

#[test]
fn every_configuration_key_is_documented() {
    let page = "docs/configuration.md";
    let text = read(page);
    let structs = [
        ("controller/src/config.rs", "Config"),
        ("controller/src/config/quarantine.rs", "QuarantineConfig"),
        ("agent-host/src/config.rs", "Config"),
        ("controller/src/project.rs", "ProjectConfig"),
        ("controller/src/project.rs", "ForgeConfig"),
        ("controller/src/project.rs", "AgentConfig"),
        ("controller/src/project.rs", "RegistryConfig"),
        ("controller/src/project.rs", "LimitsConfig"),
    ];
    assert_none(structs.iter().flat_map(|(source, name)| unmentioned(page, &text, &fields(&read(source), name))));
}

/// Each rule finds what it is for, and lets go what is right.
mod controls {
    use super::*;

    fn check(found: &[String], places: &[&str]) {
        let starts: Vec<bool> = found.iter().zip(places).map(|(found, place)| found.starts_with(place)).collect();
        assert!(found.len() == places.len() && starts.iter().all(|same| *same), "{found:?} instead of {places:?}");
    }

    #[test]
    fn comments_and_texts_are_no_code() {
        let text = "a /* { */ \"}\\\"{\" r#\"{\"{\"# '{' '\\'' 'x b: &'a str // {\n{";
        let code = code_only(text);
        assert_eq!(code.matches('{').count(), 1);
        assert_eq!(code.matches('}').count(), 0);
        assert!(code.ends_with("\n{") && code.contains("&'a str") && code.chars().count() == text.chars().count());
    }

    #[test]
    fn a_missing_and_a_long_opening_are_found() {
        check(&opening("a.rs", "use x;\n"), &["a.rs:1:"]);
        check(&opening("a.rs", &"//! x\n".repeat(11)), &["a.rs:11:"]);
        check(&opening("a.rs", &"//! x\n".repeat(10)), &[]);
    }

    #[test]
    fn a_long_file_is_found_and_its_tests_do_not_count() {
        let code = |lines| "let x = 1;\n".repeat(lines);
        check(&file_size("a/src/a.rs", &code(401)), &["a/src/a.rs: 401"]);
        let tested = format!("{}\n// note\n\n#[cfg(test)]\nmod tests {{\n{}}}\n", code(400), code(100));
        check(&file_size("a/src/a.rs", &tested), &[]);
        let helped = format!("#[cfg(test)]\nuse x;\n{}", code(400));
        check(&file_size("a/src/a.rs", &helped), &["a/src/a.rs: 402"]);
        check(&file_size("a/tests/a.rs", &code(500)), &[]);
    }

    #[test]
    fn a_long_function_is_found_by_its_braces() {
        let function = |lines| format!("\nfn long(x: [u8; 2]) -> u8 {{\n{}}}\n", "if a { \"}\"; }\n".repeat(lines));
        check(&function_size("a/src/a.rs", &function(69)), &["a/src/a.rs:2: long has 71"]);
        check(&function_size("a/src/a.rs", &function(68)), &[]);
        check(&function_size("a/src/a.rs", &format!("trait T {{\nfn none(&self);\n{}\n}}", function(60))), &[]);
    }

    #[test]
    fn unfinished_work_is_found() {
        let word = ["TO", "DO"].concat();
        check(&unfinished("a.rs", &format!("// fine\n// {word}: later\n")), &["a.rs:2:"]);
        check(&unfinished("a.rs", &format!("    {}()\n", ["todo", "!"].concat())), &["a.rs:1:"]);
        check(&unfinished("a.sh", "mktemp XXXXXX\n"), &[]);
    }

    #[test]
    fn impure_deciders_are_found() {
        let path = "controller/src/environment/report.rs";
        check(
            &purity(path, "//! No tokio::\nuse std::fs;\nlet c: &Clock;\n"),
            &[&format!("{path}:2:"), &format!("{path}:3:")],
        );
        check(&purity("controller/src/scheduler.rs", "pub async fn plan() {}\n"), &["controller/src/scheduler.rs:1:"]);
        check(&purity(path, "#[cfg(test)]\nmod tests {\nuse std::fs;\n}\n"), &[]);
        check(&purity("controller/src/reconcile.rs", "async fn tick() {}\n"), &[]);
    }

    #[test]
    fn shortcuts_are_found() {
        let (allow, ignore) = (["#[al", "low(dead_code)]"].concat(), ["#[ig", "nore = \"slow\"]"].concat());
        check(&shortcuts("a.rs", &format!("x\n{allow}\n{ignore}\n")), &["a.rs:2:", "a.rs:3:"]);
        check(&shortcuts("a/mod.rs", "x"), &["a/mod.rs:1:"]);
        check(&shortcuts("a.rs", "#[expect(dead_code, reason = \"x\")]\n"), &[]);
    }

    #[test]
    fn sleeping_tests_are_found() {
        check(&patience("a/tests/it/a.rs", "x\nsleep(second).await;\n"), &["a/tests/it/a.rs:2:"]);
        check(&patience("a/tests/it/a.rs", "// sleep: the fault on demand is a delay\nsleep(second).await;\n"), &[]);
        check(&patience("a/src/a.rs", "sleep(second).await;\n"), &[]);
    }

    #[test]
    fn private_places_are_found() {
        check(&private_places("a.md", &format!("see {}\n", ["/wo", "rk/x"].concat())), &["a.md:1:"]);
        check(
            &private_places("a.md", &format!("see /workspace/x, shared/src, <key>{}\n", ["/wo", "rk/x"].concat())),
            &[],
        );
    }

    #[test]
    fn wrong_dependencies_are_found() {
        let text =
            "[dependencies]\ntokio-util.workspace = true\n[dependencies.tonic]\n[dev-dependencies]\ntokio = \"1\"\n";
        check(
            &dependencies("Cargo.toml", text, "dependencies", &["tokio", "tonic"]),
            &["Cargo.toml:2:", "Cargo.toml:3:"],
        );
        check(&dependencies("Cargo.toml", text, "dependencies", &["toki"]), &[]);
        check(&inherits_lints("Cargo.toml", text), &["Cargo.toml:"]);
        check(&inherits_lints("Cargo.toml", "[lints]\nworkspace = true\n"), &[]);
    }

    #[test]
    fn undocumented_fields_are_found() {
        let source = "/// `x: y`\npub struct Config {\n    /// Its: name.\n    pub name: String,\n    pub size_2: u8,\n}\nstruct B { c: u8 }";
        assert_eq!(fields(source, "Config"), ["name", "size_2"]);
        assert_eq!(fields("enum E {\n    A {\n        url: u8,\n    },\n    B { x: u8 },\n}", "E"), ["url"]);
        check(&unmentioned("a.md", "the `name`", &fields(source, "Config")), &["a.md: does not mention `size_2`"]);
    }

    #[test]
    fn dead_ends_are_found() {
        let text = "[a](b.md#x) [c](../d.md) [e](https://x/y)\n`shared/src/gone.rs` `target/x`\n";
        let exists = |path: &str| path == "docs/b.md";
        check(&dead_ends("docs/a.md", text, exists), &["docs/a.md:1: the link ../d.md", "docs/a.md:2: there is no"]);
    }
}
