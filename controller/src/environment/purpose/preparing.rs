//! Which commands prepare for a test without running one: databases, and the installation of dependencies.

use super::Purpose;

/// What makes or fills a database, or waits for one.
pub(super) fn databases(name: &str, first: &str, args: &[&str]) -> Option<Purpose> {
    let found = match name {
        "rails" | "rake" => {
            args.iter().any(|word| word.starts_with("db:")) && !args.iter().any(|word| matches!(*word, "test" | "spec"))
        }
        "manage.py" | "django-admin" => {
            matches!(first, "migrate" | "loaddata" | "syncdb" | "makemigrations" | "createcachetable")
        }
        "artisan" => first.starts_with("migrate") || first.starts_with("db:"),
        "console" => first.starts_with("doctrine:"),
        "mix" => first.starts_with("ecto."),
        "alembic" | "flyway" | "liquibase" | "dbmate" | "sqlx" | "diesel" | "goose" | "migrate" | "phinx"
        | "sequelize" | "knex" | "typeorm" | "prisma" => !args.is_empty() && first != "generate",
        "psql" | "createdb" | "dropdb" | "createuser" | "pg_isready" | "mysql" | "mysqladmin" | "mongo" | "mongosh"
        | "redis-cli" | "wait-for-it.sh" | "dockerize" | "wait-for-it" | "wait-for" => true,
        _ => false,
    };
    found.then_some(Purpose::Database)
}

/// What would be taken for a build or a test by its program alone.
pub(super) fn first(name: &str, first: &str, args: &[&str]) -> Option<Purpose> {
    let has = |words: &[&str]| args.iter().any(|word| words.contains(word));
    let found = match name {
        "stack" | "cabal" => {
            matches!(first, "setup" | "update" | "install" | "config" | "path" | "upgrade")
                || has(&[
                    "--only-dependencies",
                    "--dependencies-only",
                    "--only-snapshot",
                    "--dry-run",
                    "--only-configure",
                ])
        }
        "gradle" => first == "dependencies" || args.is_empty() || has(&["--stop", "--version"]),
        "mvn" => first.starts_with("dependency:"),
        "sbt" => args.len() == 1 && matches!(first, "update" | "reload"),
        "lein" => args.len() == 1 && matches!(first, "deps"),
        "opam" => first == "install" || first == "init" || first == "switch" || first == "update" || first == "pin",
        "rebar3" => first == "get-deps",
        "swift" => has(&["resolve"]),
        "flutter" | "dart" => matches!(first, "pub" | "precache" | "config" | "doctor") && !has(&["test"]),
        "composer" => matches!(first, "install" | "update" | "require" | "config" | "global" | "self-update"),
        "npm" | "yarn" | "pnpm" => {
            matches!(first, "install" | "ci" | "i" | "add" | "config" | "set" | "global" | "link" | "cache")
                && !has(&["test"])
        }
        "pip" | "gem" | "apt-cache" => matches!(first, "install" | "download"),
        _ => false,
    };
    found.then_some(Purpose::Dependencies)
}

/// Installs what the project depends on.
pub(super) fn dependencies(name: &str, first: &str, _args: &[&str]) -> Option<Purpose> {
    let found = match name {
        "pip" | "pip2" | "pipx" | "easy_install" => matches!(first, "install" | "sync" | "wheel" | "download"),
        "uv" => matches!(first, "sync" | "pip" | "venv" | "tool" | "python"),
        "poetry" | "pdm" | "pipenv" | "rye" | "hatch" | "conda" | "mamba" => {
            matches!(first, "install" | "sync" | "update" | "env" | "lock" | "config" | "export" | "self" | "add")
        }
        "venv" | "virtualenv" | "ensurepip" | "nvm" | "rvm" | "rbenv" | "pyenv" | "corepack" | "n" | "phpize" => true,
        "npm" | "yarn" | "pnpm" | "bun" => {
            first.is_empty() && name == "yarn"
                || matches!(
                    first,
                    "install"
                        | "ci"
                        | "i"
                        | "add"
                        | "config"
                        | "set"
                        | "link"
                        | "rebuild"
                        | "global"
                        | "prune"
                        | "dedupe"
                        | "bootstrap"
                        | "update"
                )
        }
        "bower" => true,
        "lerna" | "jspm" => matches!(first, "bootstrap" | "install"),
        "bundle" | "bundler" => matches!(first, "install" | "config" | "check" | "update" | ""),
        "gem" => matches!(first, "install" | "update"),
        "composer" => matches!(
            first,
            "install"
                | "update"
                | "require"
                | "config"
                | "global"
                | "self-update"
                | "bin"
                | "dump-autoload"
                | "validate"
        ),
        "cargo" => matches!(first, "fetch" | "install" | "update" | "binstall"),
        "rustup" => matches!(
            first,
            "component" | "target" | "install" | "update" | "default" | "toolchain" | "override" | "show"
        ),
        "go" => matches!(first, "mod" | "get" | "env") || first == "install",
        "mvn" => first.starts_with("dependency:"),
        "mix" => matches!(
            first,
            "deps.get" | "local.hex" | "local.rebar" | "deps.compile" | "archive.install" | "deps.update" | "hex.info"
        ),
        "dotnet" => matches!(first, "restore" | "tool" | "workload" | "nuget"),
        "nuget" => first == "restore",
        "flutter" | "dart" | "pub" => matches!(first, "pub" | "get" | "precache"),
        "cabal" | "stack" | "opam" | "luarocks" | "cpanm" | "cpan" | "shards" | "conan" | "vcpkg" | "elm" => true,
        "docker-php-ext-install"
        | "docker-php-ext-enable"
        | "docker-php-ext-configure"
        | "pecl"
        | "install-php-extensions" => true,
        "playwright" => first == "install",
        _ => false,
    };
    found.then_some(Purpose::Dependencies)
}
