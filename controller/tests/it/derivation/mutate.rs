//! Broken CI configurations, made from whole ones: the same number always gives the same text.

use std::fmt::Write as _;

use devfleet_controller::environment::{AgentNeeds, Context, compose, derive, recipe};
use devfleet_controller::forge::CiConfig;

/// Parts of YAML and of CI configurations that change the meaning of what is around them.
const TOKENS: [&str; 46] = [
    "&a ",
    "*a",
    "<<: *a",
    "!reference [.a, script]",
    "---\n",
    "...\n",
    "? ",
    ": ",
    "- ",
    "|\n",
    ">-\n",
    "[",
    "]",
    "{",
    "}",
    "'",
    "\"",
    "\\",
    "$",
    "$$",
    "${",
    "}",
    "$CI_PROJECT_DIR",
    "%A%",
    "extends: .a\n",
    "extends: [a, b]\n",
    "include: a.yml\n",
    "include: {local: '/**/*.yml'}\n",
    "parallel: {matrix: [{A: [1, 2]}]}\n",
    "inherit: {default: false}\n",
    "services: [a, a:b@c]\n",
    "image: {name: x, entrypoint: ['']}\n",
    "cache: [{key: {files: [a]}, paths: [..]}]\n",
    "variables: {A: $B, B: $A}\n",
    "script: [a && b || c, 'if x; then']\n",
    "needs: [x]\n",
    "\u{0}",
    "\u{feff}",
    "\u{1F600}",
    "\t",
    "\r\n",
    "0o17",
    "1:30",
    "~",
    "spec: {inputs: {a: {}}}\n---\n",
    "$[[ inputs.a ]]",
];

/// Numbers that look like chance and are none (xorshift).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (end.max(1) as u64)).unwrap_or(0)
    }
}

/// Breaks a text in a few places; `other` lends lines.
pub(crate) fn mutated(text: &str, other: &str, numbers: &mut Numbers) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..1 + numbers.below(6) {
        let at = numbers.below(bytes.len() + 1);
        let end = (at + numbers.below(40)).min(bytes.len());
        match numbers.below(8) {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let span = bytes[at..end].to_vec();
                let to = numbers.below(bytes.len() + 1);
                bytes.splice(to..to, span);
            }
            2 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(1 + numbers.below(255) as u8),
            3 => bytes.truncate(at),
            4 => {
                let lines: Vec<&str> = other.lines().collect();
                let mut line = lines.get(numbers.below(lines.len())).copied().unwrap_or_default().to_owned();
                line.push('\n');
                bytes.splice(at..at, line.into_bytes());
            }
            5 => {
                let spaces = " ".repeat(numbers.below(5));
                bytes.splice(at..at, spaces.into_bytes());
            }
            _ => {
                let token = TOKENS[numbers.below(TOKENS.len())];
                bytes.splice(at..at, token.bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Derives from broken texts, and looks at what must hold of any environment. Returns whether there was one.
pub(crate) fn execution(seeds: &[String], number: u64) -> bool {
    let mut numbers = Numbers::new(number);
    let (first, second) = (numbers.below(seeds.len()), numbers.below(seeds.len()));
    let text = mutated(&seeds[first], &seeds[second], &mut numbers);
    let config = match numbers.below(4) {
        0 => CiConfig::Merged { yaml: text, errors: Vec::new(), warnings: Vec::new(), files: Vec::new() },
        _ => {
            let included = mutated(&seeds[second], &seeds[first], &mut numbers);
            let files = vec![(".gitlab-ci.yml".to_owned(), text), ("a.yml".to_owned(), included)];
            CiConfig::Raw { path: ".gitlab-ci.yml".into(), files, notes: Vec::new() }
        }
    };
    let context = Context { project_path: "team/app".into(), base_branch: "main".into(), ..Context::default() };
    let Ok(derived) = derive(&config, &context) else { return false };
    assert!((0.0..=1.0).contains(&derived.confidence), "execution {number}: confidence {}", derived.confidence);
    let recipe = recipe(&derived.environment, &derived.packages, &AgentNeeds::default());
    let mut from = String::new();
    let _ = writeln!(from, "FROM {}", derived.environment.image);
    assert!(recipe.dockerfile.starts_with(&from), "execution {number}: {}", recipe.dockerfile);
    assert_eq!(recipe.dockerfile.matches("\nFROM ").count(), 0, "execution {number}: {}", recipe.dockerfile);
    assert!(!derived.environment.image.contains('$'), "execution {number}: {}", derived.environment.image);
    assert!(!compose(&derived.environment, &recipe).is_empty(), "execution {number}");
    true
}
