//! Reads `.devfleet.toml`: strict, and every complaint with its line and key.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use devfleet_shared::environment::{CacheSpec, ServiceSpec};
use serde::Deserialize;
use toml::Spanned;

use super::super::images::ImageName;
use super::super::{caches, services};
use super::{Component, Declared, OVERRIDES_BYTES, Overrides, OverridesError};

/// How many entries each list may have.
const MAX_ENTRIES: usize = 64;
/// The smallest and the largest budget, in tokens.
const BUDGETS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    image: Option<Spanned<String>>,
    services: Option<Spanned<Vec<Spanned<WrittenService>>>>,
    setup: Option<Spanned<Vec<String>>>,
    verify: Option<Spanned<Vec<String>>>,
    caches: Option<Spanned<Vec<Spanned<WrittenCache>>>>,
    components: Option<Spanned<BTreeMap<String, Component>>>,
    budget: Option<Spanned<WrittenBudget>>,
    egress: Option<Spanned<Vec<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenService {
    image: String,
    #[serde(default)]
    aliases: Vec<String>,
    entrypoint: Option<Vec<String>>,
    command: Option<Vec<String>>,
    #[serde(default)]
    variables: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCache {
    path: String,
    #[serde(default)]
    key: String,
    #[serde(default)]
    lock_files: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenBudget {
    tokens: u64,
}

impl Overrides {
    /// Reads the file.
    ///
    /// # Errors
    /// The first thing that is wrong, by line and key.
    pub fn parse(text: &str) -> Result<Self, OverridesError> {
        let lines = Lines { text };
        if text.len() > OVERRIDES_BYTES {
            return Err(lines.refuse(0..0, "", format!("the file is longer than {OVERRIDES_BYTES} bytes; shorten it")));
        }
        let written: Written = toml::from_str(text).map_err(|error| {
            let at = error.span().unwrap_or(0..0);
            let problem = error.message().trim_end_matches('\n').to_owned();
            lines.refuse(at.clone(), &lines.key_at(at.start), problem)
        })?;
        let image = written.image.map(|image| lines.image(&image, "image")).transpose()?;
        let services = written.services.map(|services| lines.services(&services)).transpose()?;
        let setup = written.setup.map(|setup| lines.commands(setup, "setup")).transpose()?;
        let verify = written.verify.map(|verify| lines.commands(verify, "verify")).transpose()?;
        let caches = written.caches.map(|caches| lines.caches(&caches)).transpose()?;
        let components = written.components.map(|components| lines.components(components)).transpose()?;
        let budget_tokens = written.budget.map(|budget| lines.budget(&budget)).transpose()?;
        let egress = written.egress.map(|egress| lines.egress(egress)).transpose()?;
        let declared = Declared { components: components.unwrap_or_default(), budget_tokens, egress };
        Ok(Self { image, services, setup, verify, caches, declared })
    }
}

/// The text of the file, for saying where something stands.
struct Lines<'a> {
    text: &'a str,
}

impl Lines<'_> {
    fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
    }

    /// Returns the key of the line at this byte, with its table in front: `services.image`.
    fn key_at(&self, at: usize) -> String {
        let line = self.line(at);
        let mut table = "";
        let mut key = "";
        for text in self.text.lines().take(line).map(str::trim) {
            if text.starts_with('[') {
                table = text.trim_matches(['[', ']', ' ']);
                key = "";
            } else if let Some((name, _)) = text.split_once('=').filter(|_| !text.starts_with('#')) {
                key = name.trim();
            }
        }
        [table, key].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
    }

    fn refuse(&self, at: Range<usize>, key: &str, problem: impl Into<String>) -> OverridesError {
        OverridesError { line: self.line(at.start), key: key.to_owned(), problem: problem.into() }
    }

    fn no_image(&self, image: &str, why: &str, at: Range<usize>, key: &str) -> OverridesError {
        self.refuse(at, key, format!("{image:?} is no image name ({why}); write `name:tag`"))
    }

    fn image(&self, image: &Spanned<String>, key: &str) -> Result<(String, usize), OverridesError> {
        let (text, at) = (image.get_ref(), image.span());
        let name = ImageName::parse(text).map_err(|why| self.no_image(text, why, at.clone(), key))?;
        Ok((name.to_string(), self.line(at.start)))
    }

    fn check_count(&self, count: usize, at: Range<usize>, key: &str) -> Result<(), OverridesError> {
        match count {
            0..=MAX_ENTRIES => Ok(()),
            _ => Err(self.refuse(at, key, format!("it has more than {MAX_ENTRIES} entries; shorten it"))),
        }
    }

    fn services(
        &self,
        written: &Spanned<Vec<Spanned<WrittenService>>>,
    ) -> Result<(Vec<ServiceSpec>, usize), OverridesError> {
        self.check_count(written.get_ref().len(), written.span(), "services")?;
        let mut specs: Vec<ServiceSpec> = Vec::new();
        let (mut aliases, mut notes) = (BTreeSet::new(), Vec::new());
        let mut names: BTreeSet<String> = services::TAKEN.iter().map(|name| (*name).to_owned()).collect();
        for entry in written.get_ref() {
            let (service, at) = (entry.get_ref(), entry.span());
            let image = ImageName::parse(&service.image)
                .map_err(|why| self.no_image(&service.image, why, at.clone(), "services.image"))?;
            if services::is_docker(&image) {
                let problem = "Docker in Docker needs a privileged container; devfleet starts none: leave it out";
                return Err(self.refuse(at, "services.image", problem));
            }
            if let Some(bad) = service.aliases.iter().find(|alias| !services::is_host_name(alias)) {
                let problem = format!("{bad:?} is no host name; write letters, digits, `-`, `_` and `.`");
                return Err(self.refuse(at, "services.aliases", problem));
            }
            if let Some(bad) = service.variables.keys().find(|name| !crate::project::is_variable_name(name)) {
                let problem = format!("{bad:?} is no variable name; write letters, digits and underscores");
                return Err(self.refuse(at, "services.variables", problem));
            }
            let own = services::own_aliases(&service.aliases.join(" "), &image, &mut aliases, &mut notes);
            let name = services::role(own.first(), &image, &mut names);
            specs.push(ServiceSpec {
                name,
                image: image.to_string(),
                aliases: own,
                entrypoint: service.entrypoint.clone(),
                command: service.command.clone(),
                variables: service.variables.clone(),
                ..ServiceSpec::default()
            });
        }
        Ok((specs, self.line(written.span().start)))
    }

    fn commands(&self, written: Spanned<Vec<String>>, key: &str) -> Result<(Vec<String>, usize), OverridesError> {
        let at = written.span();
        self.check_count(written.get_ref().len(), at.clone(), key)?;
        if written.get_ref().iter().any(|line| line.trim().is_empty() || line.contains('\0')) {
            return Err(self.refuse(at, key, "a command is empty; write shell lines, or [] for none"));
        }
        Ok((written.into_inner(), self.line(at.start)))
    }

    fn caches(&self, written: &Spanned<Vec<Spanned<WrittenCache>>>) -> Result<(Vec<CacheSpec>, usize), OverridesError> {
        self.check_count(written.get_ref().len(), written.span(), "caches")?;
        let mut specs = Vec::new();
        for entry in written.get_ref() {
            let cache = entry.get_ref();
            let path = caches::usable(&cache.path).map_err(|why| {
                self.refuse(entry.span(), "caches.path", format!("{:?} cannot be kept: {why}", cache.path))
            })?;
            if let Some(bad) = cache.lock_files.iter().find(|path| !is_inside(path)) {
                let problem = format!("{bad:?} leaves the workspace; write a path relative to the repository");
                return Err(self.refuse(entry.span(), "caches.lock_files", problem));
            }
            let key = if cache.key.is_empty() { "default".to_owned() } else { cache.key.clone() };
            specs.push(CacheSpec { path, key, lock_files: cache.lock_files.clone() });
        }
        Ok((specs, self.line(written.span().start)))
    }

    fn components(
        &self,
        written: Spanned<BTreeMap<String, Component>>,
    ) -> Result<BTreeMap<String, Component>, OverridesError> {
        let at = written.span();
        self.check_count(written.get_ref().len(), at.clone(), "components")?;
        for (name, component) in written.get_ref() {
            let here = self.text.find(&format!("[components.{name}]")).map_or(at.clone(), |start| start..start);
            let key = format!("components.{name}.paths");
            self.check_count(component.paths.len(), here.clone(), &key)?;
            if component.paths.is_empty() || !component.paths.iter().all(|path| is_inside(path)) {
                return Err(self.refuse(
                    here,
                    &key,
                    "write at least one path, relative to the repository: [\"api/**\"]",
                ));
            }
        }
        Ok(written.into_inner())
    }

    fn budget(&self, written: &Spanned<WrittenBudget>) -> Result<u64, OverridesError> {
        let tokens = written.get_ref().tokens;
        if BUDGETS.contains(&tokens) {
            return Ok(tokens);
        }
        let problem = format!("write a number of tokens from {} to {}", BUDGETS.start(), BUDGETS.end());
        Err(self.refuse(written.span(), "budget.tokens", problem))
    }

    fn egress(&self, written: Spanned<Vec<String>>) -> Result<Vec<String>, OverridesError> {
        let at = written.span();
        self.check_count(written.get_ref().len(), at.clone(), "egress")?;
        let good = |host: &str| services::is_host_name(host.strip_prefix("*.").unwrap_or(host)) && host.contains('.');
        if let Some(bad) = written.get_ref().iter().find(|host| !good(host)) {
            let problem =
                format!("{bad:?} is no host; write `pypi.org` or `*.example.com`, without scheme, port or path");
            return Err(self.refuse(at, "egress", problem));
        }
        Ok(written.into_inner())
    }
}

/// Says whether a path is relative and stays inside.
fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.starts_with(['/', '~', '-'])
        && !path.contains(['\0', '\n', '\\', ':'])
        && !path.split('/').any(|part| part == "..")
}
