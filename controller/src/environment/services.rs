//! Services as the runner starts them: derived aliases and explicit ones, the job's variables and their own.

use std::collections::{BTreeMap, BTreeSet};

use devfleet_shared::environment::ServiceSpec;

use super::images::ImageName;
use super::job::{self, Job};
use super::shell::is_name;
use super::variables::Variables;
use super::yaml::{Node, Place};
use super::{DerivationError, Dropped};

/// How many services one environment may have.
const MAX_SERVICES: usize = 32;
/// How many aliases one service may name.
const MAX_ALIASES: usize = 16;
/// How long a role in a container's name may be.
const MAX_NAME_LETTERS: usize = 40;
/// Roles that containers of devfleet itself have.
pub(super) const TAKEN: [&str; 11] =
    ["checkout", "setup", "agent", "verify", "collect", "hold", "devbox", "build", "workspace", "network", "gateway"];

/// The services of a job.
#[derive(Debug, Default)]
pub(super) struct Services {
    pub(super) specs: Vec<ServiceSpec>,
    pub(super) places: Vec<Place>,
    /// Whether a service is left out because its image cannot be known.
    pub(super) refused: bool,
    /// Who gave them: the job's name, `default` or `(global)`.
    pub(super) origin: String,
    pub(super) dropped: Vec<Dropped>,
    pub(super) notes: Vec<String>,
}

/// Finds the services of a job; `common` are the job's own variables, which every service gets too.
pub(super) fn of_job(
    job: &Job<'_>,
    variables: &mut Variables<'_>,
    common: &BTreeMap<String, String>,
) -> Result<Services, DerivationError> {
    let mut services = Services::default();
    let Some(fact) = job.inherited("services") else { return Ok(services) };
    services.origin = fact.origin.to_owned();
    let items = fact.node.list().unwrap_or_default();
    if items.len() > MAX_SERVICES {
        let what = "the number of services".to_owned();
        return Err(DerivationError::TooLarge { file: job.file(), what, limit: MAX_SERVICES });
    }
    let mut aliases: BTreeSet<String> = BTreeSet::new();
    let mut names: BTreeSet<String> = TAKEN.iter().map(|name| (*name).to_owned()).collect();
    for item in items {
        let Some(written) = job::image(item) else {
            services.notes.push("a service without a name is left out".to_owned());
            continue;
        };
        let resolved = variables.expand_image(&written.name)?;
        let image = match ImageName::parse(&resolved) {
            Ok(image) => image,
            Err(problem) => {
                services.refuse(&written.name, &resolved, &detail(problem, variables));
                continue;
            }
        };
        if is_docker(&image) {
            let reason = "is Docker in Docker, which needs a privileged container; devfleet starts none".to_owned();
            services.dropped.push(Dropped { line: format!("service {image}"), reason });
            continue;
        }
        let explicit = match &written.alias {
            Some(alias) => variables.expand(alias)?,
            None => String::new(),
        };
        let own = own_aliases(&explicit, &image, &mut aliases, &mut services.notes);
        let name = role(own.first(), &image, &mut names);
        let mut values = common.clone();
        for (key, node) in item.get("variables").and_then(Node::map).into_iter().flat_map(|map| map.iter()) {
            if is_name(key) {
                values.insert(key.to_owned(), variables.expand(&node.text().unwrap_or_default())?);
            }
        }
        services.notes.extend(warning(&image, &values));
        let platform = match &written.platform {
            Some(platform) => Some(variables.expand(platform)?).filter(|platform| !platform.is_empty()),
            None => None,
        };
        let pull = job::pull_policy(&written, &mut services.notes);
        services.places.push(item.place);
        services.specs.push(ServiceSpec {
            name,
            image: image.to_string(),
            aliases: own,
            entrypoint: written.entrypoint,
            command: written.command,
            platform,
            pull,
            variables: values,
        });
    }
    Ok(services)
}

fn detail(problem: &str, variables: &Variables<'_>) -> String {
    let missing: Vec<&str> = variables.undefined.iter().map(String::as_str).collect();
    match missing.is_empty() {
        true => problem.to_owned(),
        false => format!("{problem}; not set in the CI file: {}", missing.join(", ")),
    }
}

impl Services {
    /// Leaves a service out whose image cannot be known: it is never pulled under half a name.
    fn refuse(&mut self, written: &str, resolved: &str, detail: &str) {
        self.refused = true;
        let reason = format!("its image becomes `{resolved}`, which is no image name ({detail})");
        self.notes.push(format!(
            "service `{written}` is left out: {reason}; give the variables a value in the CI file, or name the image outright"
        ));
        self.dropped.push(Dropped { line: format!("service {written}"), reason });
    }
}

/// Explicit aliases first, then the derived ones; the first service to claim a name keeps it.
pub(super) fn own_aliases(
    explicit: &str,
    image: &ImageName,
    taken: &mut BTreeSet<String>,
    notes: &mut Vec<String>,
) -> Vec<String> {
    let mut own = Vec::new();
    let explicit = explicit.split([' ', ',', '\t', '\n']).filter(|alias| !alias.is_empty()).map(str::to_owned);
    let explicit = explicit.take(MAX_ALIASES);
    for alias in explicit.chain(image.aliases()) {
        if own.contains(&alias) {
            continue;
        }
        if !is_host_name(&alias) {
            notes.push(format!("the alias {alias:?} of service {image} is no host name and is left out"));
        } else if taken.insert(alias.clone()) {
            own.push(alias);
        } else {
            notes.push(format!("the alias {alias:?} belongs to an earlier service; {image} does not get it"));
        }
    }
    own
}

pub(super) fn is_host_name(alias: &str) -> bool {
    alias.len() <= 253
        && alias.starts_with(|first: char| first.is_ascii_alphanumeric())
        && alias.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter))
        && alias != "localhost"
}

/// A role for the container's name: the first alias in `[a-z0-9-]`, unique.
pub(super) fn role(alias: Option<&String>, image: &ImageName, names: &mut BTreeSet<String>) -> String {
    let base = alias.map_or(image.base(), String::as_str).to_ascii_lowercase();
    let safe: String = base.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    let short: String = safe.trim_matches('-').chars().take(MAX_NAME_LETTERS).collect();
    let short = short.trim_matches('-');
    let stem = if short.is_empty() { "service" } else { short };
    let mut name = stem.to_owned();
    let mut number = 2;
    while !names.insert(name.clone()) {
        name = format!("{stem}-{number}");
        number += 1;
    }
    name
}

pub(super) fn is_docker(image: &ImageName) -> bool {
    image.base() == "docker"
        || image.base().split('-').any(|piece| piece == "dind")
        || image.tag.as_deref().is_some_and(|tag| tag.contains("dind"))
}

/// Databases that will not start as they are declared.
fn warning(image: &ImageName, values: &BTreeMap<String, String>) -> Option<String> {
    let set = |name: &str| values.get(name).is_some_and(|value| !value.is_empty());
    let base = image.base();
    if (base.contains("postgres") || base.contains("postgis"))
        && !set("POSTGRES_PASSWORD")
        && values.get("POSTGRES_HOST_AUTH_METHOD").is_none_or(|method| method != "trust")
    {
        return Some(format!(
            "{image} may not start: POSTGRES_PASSWORD is empty and POSTGRES_HOST_AUTH_METHOD is not trust"
        ));
    }
    let prefix = match base {
        "mysql" | "percona" => "MYSQL",
        "mariadb" => "MARIADB",
        _ => return None,
    };
    let any = |suffix: &str| set(&format!("{prefix}_{suffix}")) || set(&format!("MYSQL_{suffix}"));
    if !any("ROOT_PASSWORD")
        && !any("ALLOW_EMPTY_PASSWORD")
        && !any("ALLOW_EMPTY_ROOT_PASSWORD")
        && !any("RANDOM_ROOT_PASSWORD")
    {
        return Some(format!("{image} may not start: {prefix}_ROOT_PASSWORD is not set"));
    }
    values
        .get("MYSQL_USER")
        .is_some_and(|user| user == "root")
        .then(|| format!("{image} may not start: MYSQL_USER must not be root"))
}

#[cfg(test)]
mod tests {
    use super::super::{Context, merged};
    use super::*;
    use crate::forge::CiConfig;

    fn services(yaml: &str) -> Result<Services, DerivationError> {
        let config =
            CiConfig::Raw { path: "ci.yml".into(), files: vec![("ci.yml".into(), yaml.into())], notes: Vec::new() };
        let document = merged::read(&config)?;
        let job = Job::find(&document, "j").expect("there is a job j");
        let mut variables = Variables::new(&job, &[], &Context::default());
        let common = BTreeMap::from([("A".to_owned(), "a".to_owned())]);
        of_job(&job, &mut variables, &common)
    }

    fn check(list: &str, expected: &[(&str, &[&str])]) {
        let services = services(&format!("j:\n  script: x\n  services: {list}\n")).expect("they can be read");
        let found: Vec<(String, Vec<String>)> =
            services.specs.into_iter().map(|spec| (spec.name, spec.aliases)).collect();
        let expected: Vec<(String, Vec<String>)> = expected
            .iter()
            .map(|(name, aliases)| ((*name).to_owned(), aliases.iter().map(|alias| (*alias).to_owned()).collect()))
            .collect();
        assert_eq!(found, expected, "{list}");
    }

    #[test]
    fn every_service_has_its_aliases_and_a_name_of_its_own() {
        check("['redis:7']", &[("redis", &["redis"])]);
        check(
            "[{name: 'mdillon/postgis:9.6', alias: postgres}]",
            &[("postgres", &["postgres", "mdillon__postgis", "mdillon-postgis"])],
        );
        check("[{name: 'postgres:16', alias: 'db, main  pg'}]", &[("db", &["db", "main", "pg", "postgres"])]);
        check("['redis:6', {name: 'redis:7', alias: cache}]", &[("redis", &["redis"]), ("cache", &["cache"])]);
        check("['redis:6', 'redis:7']", &[("redis", &["redis"]), ("redis-2", &[])]);
        check("[{name: 'x/y:1', alias: agent}]", &[("agent-2", &["agent", "x__y", "x-y"])]);
        check("[{name: 'x/y:1', alias: My_DB.local}]", &[("my-db-local", &["My_DB.local", "x__y", "x-y"])]);
        check("[{name: 'x:1', alias: '../evil'}]", &[("x", &["x"])]);
        check("['docker:27-dind', 'registry.example.com/docker-dind']", &[]);
        check("[]", &[]);
    }

    #[test]
    fn variables_of_the_job_reach_the_service_and_its_own_come_on_top() {
        let found = services("j:\n  script: x\n  variables: {P: p}\n  services: [{name: 'postgres:16', command: [postgres, -c, fsync=off], entrypoint: [''], variables: {A: '$P$P', B: 1}}]\n")
            .expect("they can be read");
        let spec = &found.specs[0];
        assert_eq!(spec.variables, BTreeMap::from([("A".into(), "pp".into()), ("B".into(), "1".into())]));
        assert_eq!(spec.command, Some(vec!["postgres".into(), "-c".into(), "fsync=off".into()]));
        assert_eq!(spec.entrypoint, Some(vec![String::new()]));
        assert!(found.notes.iter().any(|note| note.contains("POSTGRES_PASSWORD")), "{:?}", found.notes);
    }

    #[test]
    fn a_service_that_cannot_be_resolved_is_refused_with_the_reason() {
        let found =
            services("j:\n  script: x\n  services: ['postgres:$PG_VERSION', redis]\n").expect("the other is kept");
        assert!(found.refused && found.dropped[0].reason.contains("PG_VERSION"), "{:?}", found.dropped);
        let images: Vec<&str> = found.specs.iter().map(|spec| spec.image.as_str()).collect();
        assert_eq!(images, ["redis:latest"]);
        let many = format!("j:\n  script: x\n  services: [{}]\n", vec!["a"; 100].join(", "));
        assert!(matches!(services(&many), Err(DerivationError::TooLarge { .. })));
    }
}
