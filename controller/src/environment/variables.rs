//! Variables as a job sees them, and their expansion: first GitLab's (variables in variables, nested), then the runner's
//! (one pass of Go's `os.Expand`: `$V` and `${V}`, `$$` is `$`, what is not defined is empty).
//!
//! Looked up from the strongest: matrix, job, global, predefined. What GitLab keeps outside of the file is not seen.

use std::collections::{BTreeMap, BTreeSet};

use super::job::Job;
use super::shell::is_name;
use super::yaml::{Node, Place};
use super::{Context, DerivationError};

/// How long one value may get; GitLab's own limit is 65,536 as well.
const MAX_VALUE_BYTES: usize = 65_536;
/// How deep variables may refer to variables.
const MAX_NESTING: usize = 40;
/// Stands for the dependency proxy while names are put together: an image behind it is the same one on Docker Hub.
const PROXY: char = '\u{E000}';
/// Where steps find the repository.
pub(super) const WORKSPACE: &str = "/workspace";

/// The variables of one job.
pub(super) struct Variables<'a> {
    job: &'a Job<'a>,
    matrix: &'a [(String, String)],
    predefined: BTreeMap<&'static str, String>,
    nested: BTreeMap<String, String>,
    open: Vec<String>,
    /// Names that were asked for and are not defined.
    pub(super) undefined: BTreeSet<String>,
    /// Variables that are defined by themselves: their value is set outside of the file.
    pub(super) outside: BTreeSet<String>,
}

/// One variable as written.
struct Written {
    value: String,
    expand: bool,
}

impl<'a> Variables<'a> {
    pub(super) fn new(job: &'a Job<'a>, matrix: &'a [(String, String)], context: &Context) -> Self {
        Self {
            job,
            matrix,
            predefined: predefined(job, context),
            nested: BTreeMap::new(),
            open: Vec::new(),
            undefined: BTreeSet::new(),
            outside: BTreeSet::new(),
        }
    }

    fn written(&self, name: &str) -> Option<Written> {
        let matrix = self.matrix.iter().find(|(key, _)| key == name);
        if let Some((_, value)) = matrix {
            return Some(Written { value: value.clone(), expand: true });
        }
        if let Some(node) = self.job.variable(name) {
            return Some(written(node));
        }
        self.predefined.get(name).map(|value| Written { value: value.clone(), expand: true })
    }

    /// Expands a text as the runner does.
    ///
    /// # Errors
    /// [`DerivationError::TooLarge`] when the text gets longer than any value may be.
    pub(super) fn expand(&mut self, text: &str) -> Result<String, DerivationError> {
        let mut out = String::new();
        for part in runner_parts(text) {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Name(name) => match self.nested(name)? {
                    Some(value) => out.push_str(&self.last_pass(name, &value)?),
                    None => {
                        self.undefined.insert(name.to_owned());
                    }
                },
            }
            self.check(&out)?;
        }
        Ok(out)
    }

    /// Expands the name of an image, in which the dependency proxy is left out.
    pub(super) fn expand_image(&mut self, text: &str) -> Result<String, DerivationError> {
        let expanded = self.expand(text)?;
        Ok(plain(&expanded.replace(&format!("{PROXY}/"), "")))
    }

    /// The value that the runner gives to the job, if the variable is defined.
    fn value(&mut self, name: &str) -> Result<Option<String>, DerivationError> {
        match self.nested(name)? {
            Some(value) => self.last_pass(name, &value).map(Some),
            None => Ok(None),
        }
    }

    fn last_pass(&mut self, name: &str, value: &str) -> Result<String, DerivationError> {
        if self.written(name).is_some_and(|written| !written.expand) {
            return Ok(value.to_owned());
        }
        let mut out = String::new();
        for part in runner_parts(value) {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Name(other) if other == name => {
                    self.outside.insert(name.to_owned());
                }
                Part::Name(other) => match self.written(other) {
                    Some(written) => out.push_str(&written.value),
                    None => {
                        self.undefined.insert(other.to_owned());
                    }
                },
            }
            self.check(&out)?;
        }
        Ok(out)
    }

    /// Puts variables into a variable as GitLab does: what is undefined, raw or part of a circle stays as it is.
    fn nested(&mut self, name: &str) -> Result<Option<String>, DerivationError> {
        if let Some(value) = self.nested.get(name) {
            return Ok(Some(value.clone()));
        }
        let Some(written) = self.written(name) else { return Ok(None) };
        if !written.expand || self.open.len() >= MAX_NESTING {
            return Ok(Some(written.value));
        }
        self.open.push(name.to_owned());
        let mut out = String::new();
        for part in gitlab_parts(&written.value) {
            let value = match &part {
                GitlabPart::Reference(_, other) if !self.open.iter().any(|open| open == other) => {
                    let raw = self.written(other).is_some_and(|written| !written.expand);
                    if raw { None } else { self.nested(other)? }
                }
                _ => None,
            };
            match (part, value) {
                (GitlabPart::Text(text), _) | (GitlabPart::Reference(text, _), None) => out.push_str(text),
                (GitlabPart::Reference(..), Some(value)) => out.push_str(&value),
            }
            self.check(&out)?;
        }
        self.open.pop();
        self.nested.insert(name.to_owned(), out.clone());
        Ok(Some(out))
    }

    fn check(&self, value: &str) -> Result<(), DerivationError> {
        if value.len() <= MAX_VALUE_BYTES {
            return Ok(());
        }
        let what = format!("the size of a value in job {:?} in bytes, with its variables put in,", self.job.name);
        Err(DerivationError::TooLarge { file: self.job.file(), what, limit: MAX_VALUE_BYTES })
    }

    /// All variables of the job with the values that its steps see.
    pub(super) fn all(&mut self) -> Result<BTreeMap<String, String>, DerivationError> {
        let mut names: BTreeSet<String> = self.predefined.keys().map(|name| (*name).to_owned()).collect();
        names.extend(self.job.variable_names());
        names.extend(self.matrix.iter().map(|(name, _)| name.clone()));
        names.retain(|name| is_name(name) && !HIDDEN.contains(&name.as_str()));
        let mut values = BTreeMap::new();
        for name in names {
            if let Some(value) = self.value(&name)? {
                values.insert(name, plain(&value).replace('\0', ""));
            }
        }
        Ok(values)
    }
}

/// Predefined variables that only serve to put names together.
const HIDDEN: [&str; 4] = [
    "CI_DEPENDENCY_PROXY_GROUP_IMAGE_PREFIX",
    "CI_DEPENDENCY_PROXY_DIRECT_GROUP_IMAGE_PREFIX",
    "CI_DEPENDENCY_PROXY_SERVER",
    "CI_TEMPLATE_REGISTRY_HOST",
];

fn plain(text: &str) -> String {
    text.replace(PROXY, "docker.io")
}

/// Reads `value`, or `{value, expand}`.
fn written(node: &Node) -> Written {
    match node.map() {
        Some(map) => Written {
            value: map.get("value").and_then(Node::text).unwrap_or_default(),
            expand: map.get("expand").and_then(Node::text).is_none_or(|text| text != "false"),
        },
        None => Written { value: node.text().unwrap_or_default(), expand: true },
    }
}

/// The predefined variables that have a meaning outside of CI.
fn predefined(job: &Job<'_>, context: &Context) -> BTreeMap<&'static str, String> {
    let path = context.project_path.as_str();
    let (namespace, name) = path.rsplit_once('/').unwrap_or(("", path));
    let commit = context.base_commit.as_str();
    let mut values = BTreeMap::from([
        ("CI", "true".to_owned()),
        ("GITLAB_CI", "true".to_owned()),
        ("CI_SERVER", "yes".to_owned()),
        ("CI_BUILDS_DIR", "/".to_owned()),
        ("CI_PROJECT_DIR", WORKSPACE.to_owned()),
        ("CI_PROJECT_PATH", path.to_owned()),
        ("CI_PROJECT_PATH_SLUG", slug(path)),
        ("CI_PROJECT_NAME", name.to_owned()),
        ("CI_PROJECT_NAMESPACE", namespace.to_owned()),
        ("CI_PROJECT_ROOT_NAMESPACE", path.split('/').next().unwrap_or_default().to_owned()),
        ("CI_DEFAULT_BRANCH", context.default_branch.clone()),
        ("CI_COMMIT_BRANCH", context.base_branch.clone()),
        ("CI_COMMIT_REF_NAME", context.base_branch.clone()),
        ("CI_COMMIT_REF_SLUG", slug(&context.base_branch)),
        ("CI_COMMIT_SHA", commit.to_owned()),
        ("CI_COMMIT_SHORT_SHA", commit.chars().take(8).collect()),
        ("CI_JOB_NAME", job.name.to_owned()),
        ("CI_JOB_STAGE", job.stage()),
        ("CI_PIPELINE_SOURCE", "push".to_owned()),
        ("CI_DEPENDENCY_PROXY_GROUP_IMAGE_PREFIX", PROXY.to_string()),
        ("CI_DEPENDENCY_PROXY_DIRECT_GROUP_IMAGE_PREFIX", PROXY.to_string()),
        ("CI_DEPENDENCY_PROXY_SERVER", PROXY.to_string()),
        ("CI_TEMPLATE_REGISTRY_HOST", "registry.gitlab.com".to_owned()),
    ]);
    if job.keyword("parallel").is_some() {
        // One box runs everything that CI spreads over several jobs.
        values.insert("CI_NODE_INDEX", "1".to_owned());
        values.insert("CI_NODE_TOTAL", "1".to_owned());
    }
    if let Some(prefix) = &context.registry_prefix {
        values.insert("CI_REGISTRY", prefix.split('/').next().unwrap_or_default().to_owned());
        values.insert("CI_REGISTRY_IMAGE", prefix.clone());
    }
    values
}

/// GitLab's slug: lower case, `-` for everything else, at most 63 letters, none of the hyphens at the ends.
fn slug(text: &str) -> String {
    let slug: String =
        text.to_lowercase().chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    let short: String = slug.chars().take(63).collect();
    short.trim_matches('-').to_owned()
}

enum Part<'a> {
    Text(&'a str),
    Name(&'a str),
}

/// Cuts a text as Go's `os.Expand` does, with the runner's meaning of the special names.
fn runner_parts(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        parts.push(Part::Text(&rest[..at]));
        let after = &rest[at + 1..];
        let (name, length) = shell_name(after);
        match name {
            "$" => parts.push(Part::Text("$")),
            // `$` in front of something that is no name stays; `${` without an end and `${}` are eaten.
            "" if length == 0 => parts.push(Part::Text("$")),
            "" => {}
            name if name.len() == 1 && is_special(name) => {}
            name => parts.push(Part::Name(name)),
        }
        rest = &after[length..];
    }
    parts.push(Part::Text(rest));
    parts
}

fn is_special(name: &str) -> bool {
    name.chars().all(|letter| "*#@!?-".contains(letter) || letter.is_ascii_digit())
}

/// Go's `getShellName`: the name behind a `$`, and how much of the text it takes.
fn shell_name(text: &str) -> (&str, usize) {
    if let Some(braced) = text.strip_prefix('{') {
        return match braced.find('}') {
            Some(0) => ("", 2),
            Some(end) => (&braced[..end], end + 2),
            None => ("", 1),
        };
    }
    match text.chars().next() {
        Some(first) if "*#$@!?-".contains(first) || first.is_ascii_digit() => (&text[..1], 1),
        _ => {
            let end = text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(text.len());
            (&text[..end], end)
        }
    }
}

enum GitlabPart<'a> {
    Text(&'a str),
    /// As written, and the name.
    Reference(&'a str, &'a str),
}

/// Cuts a text as GitLab's `ExpandVariables` does: `$V`, `${V}` and `%V%`; `$$` and `%%` stay.
fn gitlab_parts(text: &str) -> Vec<GitlabPart<'_>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['$', '%']) {
        parts.push(GitlabPart::Text(&rest[..at]));
        let here = &rest[at..];
        let length = match reference(here) {
            Some((length, name)) => {
                parts.push(GitlabPart::Reference(&here[..length], name));
                length
            }
            None => {
                let length = if here.starts_with("$$") || here.starts_with("%%") { 2 } else { 1 };
                parts.push(GitlabPart::Text(&here[..length]));
                length
            }
        };
        rest = &here[length..];
    }
    parts.push(GitlabPart::Text(rest));
    parts
}

fn reference(here: &str) -> Option<(usize, &str)> {
    let name_at = |start: usize| {
        let name = here.get(start..)?;
        let end = name.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(name.len());
        name.get(..end).filter(|name| is_name(name))
    };
    if here.starts_with("${") {
        let name = name_at(2)?;
        let end = 2 + name.len();
        return here.get(end..)?.starts_with('}').then_some((end + 1, name));
    }
    let name = name_at(1)?;
    match here.starts_with('$') {
        true => Some((1 + name.len(), name)),
        false => here.get(1 + name.len()..)?.starts_with('%').then_some((2 + name.len(), name)),
    }
}

/// The place of a variable's definition, if the file has one.
pub(super) fn place_of(job: &Job<'_>, name: &str) -> Option<Place> {
    job.variable(name).map(|node| node.place)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::merged;
    use super::*;
    use crate::forge::CiConfig;

    fn check(yaml: &str, text: &str, expected: &str) {
        let config =
            CiConfig::Raw { path: "ci.yml".into(), files: vec![("ci.yml".into(), yaml.into())], notes: Vec::new() };
        let document = merged::read(&config).expect("it can be read");
        let job = Job::find(&document, "j").expect("there is a job j");
        let context = Context {
            project_path: "team/My_App".into(),
            base_branch: "Feature/X".into(),
            registry_prefix: Some("registry.example.com/team/my_app".into()),
            ..Context::default()
        };
        let mut variables = Variables::new(&job, &[], &context);
        assert_eq!(variables.expand_image(text).expect("it expands"), expected, "{yaml} {text}");
    }

    #[test]
    fn texts_are_expanded_in_one_pass_as_the_runner_does() {
        let yaml = "variables: {A: a, B: b}\nj: {variables: {B: job}, script: x}\n";
        let table = [
            ("$A-${B}", "a-job"),
            ("$$A", "$A"),
            ("$NOPE/x", "/x"),
            ("${A:-x}", ""),
            ("${A", "A"),
            ("${}x", "x"),
            ("$.x", "$.x"),
            ("100$", "100$"),
            ("$1x$?", "x"),
            ("$A$A", "aa"),
            ("%A%", "%A%"),
            ("$CI_PROJECT_PATH_SLUG:$CI_COMMIT_REF_SLUG", "team-my-app:feature-x"),
            ("$CI_REGISTRY_IMAGE/ci", "registry.example.com/team/my_app/ci"),
            ("${CI_DEPENDENCY_PROXY_GROUP_IMAGE_PREFIX}/python:3", "python:3"),
        ];
        for (text, expected) in table {
            check(yaml, text, expected);
        }
    }

    #[test]
    fn variables_in_variables_are_nested_as_gitlab_does() {
        check("variables: {A: '$B.1', B: '${C}', C: '3'}\nj: {script: x}\n", "python:$A", "python:3.1");
        check("variables: {A: '%B%', B: x}\nj: {script: x}\n", "$A", "x");
        check("variables: {A: '$$B', B: x}\nj: {script: x}\n", "$A", "$B");
        check("variables: {A: '$A'}\nj: {script: x}\n", "a${A}b", "ab");
        check("variables: {A: '$NOPE-x'}\nj: {script: x}\n", "$A", "-x");
        check("variables: {A: {value: '$B', expand: false}, B: x}\nj: {script: x}\n", "$A", "$B");
        check("variables: {A: {value: v, description: d}, B: {description: d}}\nj: {script: x}\n", "$A$B", "v");
        check("variables: {A: 3.10, B: yes, C: 010}\nj: {script: x}\n", "$A $B $C", "3.1 true 8");
        check(
            "variables: {P: '${CI_DEPENDENCY_PROXY_GROUP_IMAGE_PREFIX}/'}\nj: {script: x}\n",
            "${P}node:20",
            "node:20",
        );
    }

    #[test]
    fn inherit_keeps_global_variables_out() {
        check("variables: {A: a, B: b}\nj: {inherit: {variables: false}, script: x}\n", "$A$B", "");
        check("variables: {A: a, B: b}\nj: {inherit: {variables: [B]}, script: x}\n", "$A$B", "b");
    }

    #[test]
    fn values_cannot_grow_without_bound() {
        let mut yaml = String::from("variables:\n  A0: xxxxxxxxxxxxxxxx\n");
        for level in 1..40 {
            yaml.push_str(&format!("  A{level}: $A{}$A{}\n", level - 1, level - 1));
        }
        yaml.push_str("j: {script: x}\n");
        let config = CiConfig::Raw { path: "ci.yml".into(), files: vec![("ci.yml".into(), yaml)], notes: Vec::new() };
        let document = merged::read(&config).expect("it can be read");
        let job = Job::find(&document, "j").expect("there is a job j");
        let refused = Variables::new(&job, &[], &Context::default()).all();
        assert!(matches!(refused, Err(DerivationError::TooLarge { .. })));
    }

    /// Expands a text where `A` and `B` name one another, `C` is `c`, and everything else is not defined.
    fn expanded(text: &str) -> Option<String> {
        let yaml = "variables: {A: a$B, B: b$A, C: c}\nj: {script: x}\n";
        let files = vec![("ci.yml".to_owned(), yaml.to_owned())];
        let config = CiConfig::Raw { path: "ci.yml".into(), files, notes: Vec::new() };
        let document = merged::read(&config).expect("it can be read");
        let job = Job::find(&document, "j").expect("there is a job j");
        Variables::new(&job, &[], &Context::default()).expand(text).ok()
    }

    proptest! {
        #[test]
        fn what_holds_no_dollar_is_not_touched(text in "[^$]{0,40}") {
            prop_assert_eq!(expanded(&text), Some(text));
        }

        #[test]
        fn any_text_is_expanded_once_and_the_same_each_time(text in "[$ABCx{}% -]{0,40}") {
            let first = expanded(&text).expect("it is short");
            prop_assert_eq!(Some(first.clone()), expanded(&text));
            prop_assert!(first.len() <= text.len() * 8, "{text} becomes {first}");
        }

        #[test]
        fn both_spellings_of_a_variable_are_the_same_and_what_is_around_them_stays(
            before in "[a-z/:. ]{0,10}", name in "[A-D]", after in "[/:. -]{0,10}"
        ) {
            let bare = expanded(&format!("{before}${name}{after}"));
            prop_assert_eq!(&bare, &expanded(&format!("{before}${{{name}}}{after}")));
            let bare = bare.expect("it is short");
            prop_assert!(bare.starts_with(&before) && bare.ends_with(&after), "{bare}");
            let expected = match name.as_str() { "C" => Some("c"), "D" => Some(""), _ => None };
            if let Some(expected) = expected {
                prop_assert_eq!(bare, format!("{before}{expected}{after}"));
            }
        }
    }
}
