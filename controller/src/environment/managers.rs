//! The caches that package managers need, beside those that the CI file names: where each keeps its downloads.
//!
//! Paths are those of the official images, which run as root; a variable that moves a cache is followed.

use std::collections::BTreeMap;

use devfleet_shared::environment::CacheSpec;

use super::shell;
use super::variables::WORKSPACE;

/// Stands in front of the key of a cache that no CI file names.
pub(super) const KEY: &str = "packages";

struct Manager {
    name: &'static str,
    programs: &'static [&'static str],
    /// The variable that moves the cache, and what follows it in the path.
    variable: (&'static str, &'static str),
    path: &'static str,
    locks: &'static [&'static str],
}

const MANAGERS: [Manager; 20] = [
    Manager {
        name: "pip",
        programs: &["pip", "tox", "nox", "pipenv"],
        variable: ("PIP_CACHE_DIR", ""),
        path: "/root/.cache/pip",
        locks: &["requirements.txt", "Pipfile.lock", "pyproject.toml"],
    },
    Manager {
        name: "poetry",
        programs: &["poetry"],
        variable: ("POETRY_CACHE_DIR", ""),
        path: "/root/.cache/pypoetry",
        locks: &["poetry.lock"],
    },
    Manager {
        name: "uv",
        programs: &["uv"],
        variable: ("UV_CACHE_DIR", ""),
        path: "/root/.cache/uv",
        locks: &["uv.lock"],
    },
    Manager {
        name: "bundler",
        programs: &["bundle", "bundler"],
        variable: ("BUNDLE_PATH", ""),
        path: "/usr/local/bundle/cache",
        locks: &["Gemfile.lock"],
    },
    Manager {
        name: "npm",
        programs: &["npm"],
        variable: ("npm_config_cache", ""),
        path: "/root/.npm",
        locks: &["package-lock.json"],
    },
    Manager {
        name: "yarn",
        programs: &["yarn"],
        variable: ("YARN_CACHE_FOLDER", ""),
        path: "/usr/local/share/.cache/yarn",
        locks: &["yarn.lock"],
    },
    Manager {
        name: "pnpm",
        programs: &["pnpm"],
        variable: ("PNPM_HOME", "/store"),
        path: "/root/.local/share/pnpm/cache",
        locks: &["pnpm-lock.yaml"],
    },
    Manager {
        name: "cargo",
        programs: &["cargo"],
        variable: ("CARGO_HOME", "/registry"),
        path: "/usr/local/cargo/registry",
        locks: &["Cargo.lock"],
    },
    Manager {
        name: "go",
        programs: &["go", "gotestsum"],
        variable: ("GOMODCACHE", ""),
        path: "/go/pkg/mod/cache",
        locks: &["go.sum"],
    },
    Manager {
        name: "maven",
        programs: &["mvn"],
        variable: ("MAVEN_REPOSITORY", ""),
        path: "/root/.m2/repository",
        locks: &["pom.xml"],
    },
    Manager {
        name: "gradle",
        programs: &["gradle"],
        variable: ("GRADLE_USER_HOME", ""),
        path: "/root/.gradle/caches",
        locks: &["gradle.lockfile", "build.gradle", "build.gradle.kts"],
    },
    Manager {
        name: "sbt",
        programs: &["sbt"],
        variable: ("COURSIER_CACHE", ""),
        path: "/root/.cache/coursier",
        locks: &["build.sbt"],
    },
    Manager {
        name: "composer",
        programs: &["composer"],
        variable: ("COMPOSER_CACHE_DIR", ""),
        path: "/root/.composer/cache",
        locks: &["composer.lock"],
    },
    Manager {
        name: "mix",
        programs: &["mix"],
        variable: ("HEX_HOME", ""),
        path: "/root/.hex/packages-cache",
        locks: &["mix.lock"],
    },
    Manager {
        name: "nuget",
        programs: &["dotnet", "nuget"],
        variable: ("NUGET_PACKAGES", ""),
        path: "/root/.nuget/packages-cache",
        locks: &["packages.lock.json"],
    },
    Manager {
        name: "stack",
        programs: &["stack"],
        variable: ("STACK_ROOT", ""),
        path: "/root/.stack/cache",
        locks: &["stack.yaml.lock"],
    },
    Manager {
        name: "cabal",
        programs: &["cabal"],
        variable: ("CABAL_DIR", ""),
        path: "/root/.cache/cabal",
        locks: &["cabal.project.freeze"],
    },
    Manager {
        name: "pub",
        programs: &["dart", "flutter", "pub"],
        variable: ("PUB_CACHE", ""),
        path: "/root/.pub-cache",
        locks: &["pubspec.lock"],
    },
    Manager {
        name: "conan",
        programs: &["conan"],
        variable: ("CONAN_USER_HOME", ""),
        path: "/root/.conan-cache",
        locks: &["conan.lock", "conanfile.txt"],
    },
    Manager {
        name: "shards",
        programs: &["shards"],
        variable: ("SHARDS_CACHE_PATH", ""),
        path: "/root/.cache/shards",
        locks: &["shard.lock"],
    },
];

/// Finds the caches of the managers that the lines run, and the commands of scripts behind them. `locks` of the repository are told apart by `files`, if known.
pub(super) fn caches(
    lines: &[&[String]],
    commands: &[Vec<String>],
    variables: &BTreeMap<String, String>,
    files: &BTreeMap<String, String>,
    user: Option<&str>,
) -> Vec<CacheSpec> {
    let text = lines.iter().flat_map(|lines| lines.iter()).map(String::as_str).collect::<Vec<_>>().join("\n");
    let units = shell::split(&text).units;
    let commands: Vec<&Vec<String>> = units.iter().flat_map(|unit| &unit.commands).chain(commands).collect();
    let runs = |manager: &Manager| {
        let named = |word: &String| manager.programs.contains(&shell::base_name(word));
        let started = |command: &[String]| shell::program(command).first().is_some_and(named);
        commands.iter().any(|command| started(command) || command.iter().take(3).any(named))
    };
    let rooted = user.is_none_or(|user| matches!(user.split(':').next(), Some("root" | "0")));
    let mut caches: Vec<CacheSpec> = Vec::new();
    for manager in MANAGERS.iter().filter(|manager| runs(manager)) {
        let moved = moved(manager, variables, &text);
        let Some(path) = moved.or_else(|| rooted.then(|| manager.path.to_owned())) else { continue };
        let known = |lock: &&&str| files.is_empty() || files.contains_key(**lock);
        let lock_files = manager.locks.iter().filter(known).map(|lock| (*lock).to_owned()).collect();
        caches.push(CacheSpec { path, key: format!("{KEY}:{}", manager.name), lock_files });
    }
    caches
}

/// Where a variable or an option puts the cache, relative to the workspace if it lies in it.
fn moved(manager: &Manager, variables: &BTreeMap<String, String>, text: &str) -> Option<String> {
    if manager.name == "maven" {
        let options = ["MAVEN_OPTS", "MAVEN_CLI_OPTS", "MVN_OPTS", "MAVEN_ARGS"];
        let values = options.iter().filter_map(|name| variables.get(*name)).map(String::as_str).chain([text]);
        let of = |value: &str| value.split_once("-Dmaven.repo.local=").map(|(_, rest)| rest.to_owned());
        let found = values.into_iter().find_map(of)?;
        let path: String =
            found.chars().take_while(|letter| !letter.is_whitespace() && !"'\"".contains(*letter)).collect();
        return relative(&path.replace("$CI_PROJECT_DIR", WORKSPACE).replace("${CI_PROJECT_DIR}", WORKSPACE));
    }
    let (name, below) = manager.variable;
    let upper = || variables.get(&name.to_ascii_uppercase());
    let value = variables.get(name).or_else(upper)?;
    relative(&format!("{}{below}", value.trim_end_matches('/')))
}

fn relative(path: &str) -> Option<String> {
    let inside = path.strip_prefix(WORKSPACE).filter(|rest| rest.starts_with('/'));
    let path = inside.map_or(path, |rest| rest.trim_start_matches('/')).trim_start_matches("./");
    let safe = |part: &str| !part.is_empty() && part != ".." && part != ".git";
    let parts_fit = path.trim_matches('/').split('/').all(safe);
    let letters_fit = path.chars().all(|letter| letter.is_ascii_alphanumeric() || "/._-".contains(letter));
    (parts_fit && letters_fit).then(|| path.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_manager_has_its_cache_where_it_keeps_it() {
        type Row =
            (&'static str, &'static [(&'static str, &'static str)], Option<&'static str>, &'static [&'static str]);
        let table: [Row; 14] = [
            ("pip install -r requirements.txt", &[], None, &["/root/.cache/pip"]),
            ("python3 -m pip install .", &[], None, &["/root/.cache/pip"]),
            ("pip install .", &[("PIP_CACHE_DIR", "/workspace/.cache/pip")], None, &[".cache/pip"]),
            ("pip install .", &[], Some("node"), &[]),
            ("pip install .", &[], Some("root"), &["/root/.cache/pip"]),
            ("bundle exec rspec", &[], None, &["/usr/local/bundle/cache"]),
            ("bundle install && yarn install", &[], None, &["/usr/local/bundle/cache", "/usr/local/share/.cache/yarn"]),
            ("npm ci", &[("NPM_CONFIG_CACHE", "/workspace/.npm")], None, &[".npm"]),
            ("cargo test", &[("CARGO_HOME", "/workspace/.cargo")], None, &[".cargo/registry"]),
            ("./mvnw -Dmaven.repo.local=.m2/repository test", &[], None, &[".m2/repository"]),
            ("mvn test", &[("MAVEN_OPTS", "-Xmx1g -Dmaven.repo.local=/workspace/.m2 -x")], None, &[".m2"]),
            ("./gradlew test", &[("GRADLE_USER_HOME", "/workspace/../x")], None, &["/root/.gradle/caches"]),
            ("go test ./...", &[], None, &["/go/pkg/mod/cache"]),
            ("make test", &[], None, &[]),
        ];
        for (line, variables, user, expected) in table {
            let variables = variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect::<BTreeMap<_, _>>();
            let lines = [line.to_owned()];
            let found = caches(&[lines.as_slice()], &[], &variables, &BTreeMap::new(), user);
            let paths: Vec<&str> = found.iter().map(|cache| cache.path.as_str()).collect();
            assert_eq!(paths, expected, "{line}");
        }
    }

    #[test]
    fn the_lock_files_of_the_repository_key_the_cache() {
        let files = BTreeMap::from([("uv.lock".to_owned(), String::new())]);
        let lines = ["uv sync".to_owned(), "go test".to_owned()];
        let found = caches(&[lines.as_slice()], &[], &BTreeMap::new(), &files, None);
        let locks: Vec<&[String]> = found.iter().map(|cache| cache.lock_files.as_slice()).collect();
        assert_eq!(locks, [&["uv.lock".to_owned()][..], &[][..]]);
    }
}
