//! One job with what it inherits: a job's own keyword replaces that of `default:`, which replaces the one at the top.

use devfleet_shared::environment::PullPolicy;

use super::merged::Document;
use super::yaml::{Map, Node, Place, Value};

/// How many variants of a matrix are looked at; GitLab allows 200.
const MAX_VARIANTS: usize = 200;

/// A job in its document.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) name: &'a str,
    map: &'a Map,
    document: &'a Document,
}

/// A keyword's value, and who gave it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fact<'a> {
    pub(super) node: &'a Node,
    /// The job's name, `default`, or `(global)`.
    pub(super) origin: &'a str,
}

/// A variant of a matrix: names and values.
pub(super) type Variant = Vec<(String, String)>;

/// What `image:` or an entry of `services:` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Written {
    pub(super) name: String,
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) command: Option<Vec<String>>,
    pub(super) user: Option<String>,
    pub(super) platform: Option<String>,
    /// Pull policies in the order in which CI would try them.
    pub(super) pull: Vec<String>,
    pub(super) alias: Option<String>,
}

impl<'a> Job<'a> {
    pub(super) fn new(document: &'a Document, name: &'a str, map: &'a Map) -> Self {
        Self { name, map, document }
    }

    /// Finds a job by name.
    #[cfg(test)]
    pub(super) fn find(document: &'a Document, name: &str) -> Option<Self> {
        document.jobs().find(|(found, _)| *found == name).map(|(name, map)| Self::new(document, name, map))
    }

    /// The main file's name, for messages.
    pub(super) fn file(&self) -> String {
        self.document.main()
    }

    /// A keyword of the job itself.
    pub(super) fn keyword(&self, keyword: &str) -> Option<&'a Node> {
        self.map.get(keyword).filter(|node| !node.is_null())
    }

    /// A keyword of the job, or the one it inherits.
    pub(super) fn inherited(&self, keyword: &str) -> Option<Fact<'a>> {
        if let Some(node) = self.keyword(keyword) {
            return Some(Fact { node, origin: self.name });
        }
        if !self.inherits("default", keyword) {
            return None;
        }
        let default = self.document.root.get("default").and_then(|node| node.get(keyword));
        if let Some(node) = default.filter(|node| !node.is_null()) {
            return Some(Fact { node, origin: "default" });
        }
        let global = self.document.root.get(keyword).filter(|node| !node.is_null())?;
        Some(Fact { node: global, origin: "(global)" })
    }

    /// The image that jobs have which name none.
    pub(super) fn default_image(&self) -> Option<&'a Node> {
        let default = self.document.root.get("default").and_then(|node| node.get("image"));
        default.or_else(|| self.document.root.get("image")).filter(|node| !node.is_null())
    }

    fn inherits(&self, what: &str, name: &str) -> bool {
        match self.keyword("inherit").and_then(|node| node.get(what)).map(|node| &node.value) {
            Some(Value::Bool(all)) => *all,
            Some(Value::List(names)) => names.iter().any(|node| node.text().as_deref() == Some(name)),
            _ => true,
        }
    }

    /// A variable of the job, or a global one.
    pub(super) fn variable(&self, name: &str) -> Option<&'a Node> {
        let own = self.keyword("variables").and_then(|node| node.get(name));
        own.or_else(|| self.document.root.get("variables")?.get(name).filter(|_| self.inherits("variables", name)))
    }

    /// The names of all variables that the file gives to the job.
    pub(super) fn variable_names(&self) -> Vec<String> {
        let names = |node: Option<&Node>| -> Vec<String> {
            node.and_then(Node::map)
                .map(|map| map.iter().map(|(name, _)| name.to_owned()).collect())
                .unwrap_or_default()
        };
        let mut all = names(self.document.root.get("variables"));
        all.retain(|name| self.inherits("variables", name));
        all.extend(names(self.keyword("variables")));
        all
    }

    pub(super) fn stage(&self) -> String {
        self.keyword("stage").and_then(Node::text).unwrap_or_else(|| "test".to_owned())
    }

    /// The lines of `before_script` or `script`, each with its place.
    pub(super) fn lines(&self, keyword: &str) -> Vec<(String, Place)> {
        let fact =
            if keyword == "script" { self.keyword(keyword) } else { self.inherited(keyword).map(|fact| fact.node) };
        let mut lines = Vec::new();
        if let Some(node) = fact {
            flatten(node, &mut lines);
        }
        lines
    }

    /// Whether it runs a script here; `trigger:` jobs run elsewhere.
    pub(super) fn runs(&self) -> bool {
        self.keyword("trigger").is_none() && self.keyword("script").is_some()
    }

    /// The variants of `parallel: matrix`; one without variables when there is no matrix.
    pub(super) fn variants(&self) -> Vec<Variant> {
        let entries =
            self.keyword("parallel").and_then(|node| node.get("matrix")).and_then(Node::list).unwrap_or_default();
        let mut all: Vec<Variant> = Vec::new();
        for entry in entries.iter().filter_map(Node::map) {
            let mut product: Vec<Variant> = vec![Vec::new()];
            for (name, values) in entry.iter() {
                let values = values.texts();
                let room = MAX_VARIANTS / product.len().max(1) + 1;
                let values: Vec<&String> = values.iter().take(room).collect();
                if values.is_empty() {
                    continue;
                }
                product =
                    product.iter().flat_map(|variant| extended(variant, name, &values)).take(MAX_VARIANTS).collect();
            }
            all.extend(product);
            if all.len() >= MAX_VARIANTS {
                all.truncate(MAX_VARIANTS);
                break;
            }
        }
        if all.is_empty() { vec![Vec::new()] } else { all }
    }
}

fn extended(variant: &Variant, name: &str, values: &[&String]) -> Vec<Variant> {
    let with = |value: &&String| {
        let mut variant = variant.clone();
        variant.push((name.to_owned(), (*value).clone()));
        variant
    };
    values.iter().map(with).collect()
}

/// Scripts may nest lists (through anchors and references); GitLab flattens them.
fn flatten(node: &Node, lines: &mut Vec<(String, Place)>) {
    match node.list() {
        Some(items) => items.iter().for_each(|item| flatten(item, lines)),
        None => {
            let text = node.text().unwrap_or_default();
            if !text.trim().is_empty() {
                lines.push((text, node.place));
            }
        }
    }
}

/// Reads an image in both spellings: a name, or a mapping with one.
pub(super) fn image(node: &Node) -> Option<Written> {
    let Some(map) = node.map() else {
        let name = node.text().filter(|name| !name.trim().is_empty())?;
        return Some(Written { name: name.trim().to_owned(), ..Written::default() });
    };
    let list = |key: &str| map.get(key).filter(|node| !node.is_null()).map(Node::texts);
    let docker = |key: &str| {
        map.get("docker").and_then(|docker| docker.get(key)).and_then(Node::text).filter(|text| !text.is_empty())
    };
    Some(Written {
        name: map.get("name").and_then(Node::text).filter(|name| !name.trim().is_empty())?.trim().to_owned(),
        entrypoint: list("entrypoint"),
        command: list("command"),
        user: docker("user"),
        platform: docker("platform"),
        pull: map.get("pull_policy").filter(|node| !node.is_null()).map(Node::texts).unwrap_or_default(),
        alias: map.get("alias").and_then(Node::text).filter(|alias| !alias.trim().is_empty()),
    })
}

/// Returns when CI wants an image to be pulled: the first policy that it names. What is none is left out with a note.
pub(super) fn pull_policy(written: &Written, notes: &mut Vec<String>) -> Option<PullPolicy> {
    let first = written.pull.first()?;
    let policy = PullPolicy::named(first);
    if policy.is_none() {
        notes.push(format!(
            "`pull_policy: {first}` of image {} is none that GitLab knows and is left out",
            written.name
        ));
    } else if written.pull.len() > 1 {
        notes.push(format!("of the pull policies of image {} the first one counts: {first}", written.name));
    }
    policy
}

#[cfg(test)]
mod tests {
    use super::super::merged;
    use super::*;
    use crate::forge::CiConfig;

    fn document(yaml: &str) -> Document {
        merged::read(&CiConfig::Raw {
            path: "ci.yml".into(),
            files: vec![("ci.yml".into(), yaml.into())],
            notes: Vec::new(),
        })
        .expect("it can be read")
    }

    #[test]
    fn the_first_pull_policy_counts_and_an_unknown_one_does_not() {
        for (yaml, expected, note) in [
            ("image: {name: a}\na: {script: x}", None, ""),
            ("image: {name: a, pull_policy: always}\na: {script: x}", Some(PullPolicy::Always), ""),
            ("image: {name: a, pull_policy: [never, always]}\na: {script: x}", Some(PullPolicy::Never), "first"),
            ("image: {name: a, pull_policy: sometimes}\na: {script: x}", None, "sometimes"),
        ] {
            let document = document(yaml);
            let fact = Job::find(&document, "a").and_then(|job| job.inherited("image")).expect("an image");
            let mut notes = Vec::new();
            assert_eq!(pull_policy(&image(fact.node).expect("a name"), &mut notes), expected, "{yaml}");
            assert!(notes.is_empty() == note.is_empty() && notes.iter().all(|text| text.contains(note)), "{notes:?}");
        }
    }

    #[test]
    fn a_job_replaces_what_it_would_inherit() {
        let yaml = "image: top\ndefault: {image: default, cache: {}}\nservices: [top]\na: {script: x}\nb: {image: own, services: [], script: x}\n\
                    c: {inherit: {default: false}, script: x}\nd: {inherit: {default: [services]}, script: x}\n";
        let document = document(yaml);
        let image_of = |name: &str| {
            let job = Job::find(&document, name).expect("job");
            job.inherited("image").map(|fact| (fact.node.text().unwrap_or_default(), fact.origin.to_owned()))
        };
        assert_eq!(image_of("a"), Some(("default".into(), "default".into())));
        assert_eq!(image_of("b"), Some(("own".into(), "b".into())));
        assert_eq!(image_of("c"), None);
        assert_eq!(image_of("d"), None);
        let services = |name: &str| {
            Job::find(&document, name).and_then(|job| job.inherited("services")).map(|fact| fact.node.texts())
        };
        assert_eq!(services("a"), Some(vec!["top".to_owned()]));
        assert_eq!(services("b"), Some(vec![]));
        assert_eq!(services("d"), Some(vec!["top".to_owned()]));
    }

    #[test]
    fn scripts_are_flattened_and_empty_lines_left_out() {
        let document = document("j:\n  script:\n    - [a, [b, c]]\n    - ''\n    - |\n      d\n      e\n");
        let lines = Job::find(&document, "j").expect("job").lines("script");
        let texts: Vec<&str> = lines.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(texts, ["a", "b", "c", "d\ne\n"]);
    }

    #[test]
    fn a_matrix_is_multiplied_out() {
        let document = document(
            "j:\n  parallel:\n    matrix:\n      - {A: ['1', '2'], B: [x, y]}\n      - {A: '3'}\n  script: x\n",
        );
        let variants = Job::find(&document, "j").expect("job").variants();
        let shown: Vec<String> = variants
            .iter()
            .map(|variant| variant.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(""))
            .collect();
        assert_eq!(shown, ["1x", "1y", "2x", "2y", "3"]);
    }
}
