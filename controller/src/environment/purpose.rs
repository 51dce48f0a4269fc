//! What a command of a CI script is for. The tables are from reading real files; they are judged by the program's name.

mod preparing;
mod testing;

use super::shell;

/// What a command is for. The order is how much it says about a job: the greater decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    /// Prints something or makes a directory.
    Trivial,
    /// Anything else.
    Other,
    /// Changes the shell itself: `cd`, `export`, `source`.
    State,
    /// Adds a place that OS packages come from.
    PackageSource,
    /// Refreshes the lists of OS packages.
    PackageLists,
    /// Installs OS packages.
    Packages,
    /// Installs what the project depends on.
    Dependencies,
    /// Makes or fills a database.
    Database,
    /// Must not run in the environment.
    Forbidden(Ban),
    /// Checks style or types.
    Lint,
    /// Builds.
    Build,
    /// Runs tests through a browser or against a deployment.
    EndToEnd,
    /// Runs something that is called like a test.
    TestScript,
    /// Runs tests.
    Test,
}

/// Why a command must not run in the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ban {
    Ssh,
    Docker,
    GitRemote,
    Version,
    Deploy,
    Upload,
}

impl Ban {
    /// Says it to people.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Ban::Ssh => "sets up SSH keys or connections; the environment has no deploy keys",
            Ban::Docker => "needs a Docker daemon, which the environment does not have",
            Ban::GitRemote => "changes git's settings, history or remotes; devfleet itself commits and pushes",
            Ban::Version => "changes the project's version, which is for releases",
            Ban::Deploy => "deploys",
            Ban::Upload => "uploads results",
        }
    }
}

/// Judges one unit: the most telling of its commands, and of what they start in the repository.
pub(super) fn of_unit(unit: &shell::Unit) -> Purpose {
    let own = on_its_face(unit);
    if unit.inner.is_empty() || matches!(own, Purpose::Forbidden(_)) {
        return own;
    }
    let inner: Vec<Purpose> = unit.inner.iter().map(on_its_face).collect();
    // Git's settings, versions and uploads at the end of a script do not make a script of tests useless.
    let needs = |purpose: &Purpose| matches!(purpose, Purpose::Forbidden(Ban::Docker | Ban::Deploy | Ban::Ssh));
    let does = inner.iter().copied().filter(|purpose| !matches!(purpose, Purpose::Forbidden(_))).max();
    match (does.unwrap_or(Purpose::Trivial), inner.iter().copied().find(needs)) {
        (does, Some(ban)) if does < Purpose::EndToEnd => ban,
        // It is called like a test, and what it runs is not known: the name stands.
        (Purpose::Other | Purpose::State | Purpose::Build | Purpose::Dependencies | Purpose::Database, None)
            if own >= Purpose::EndToEnd =>
        {
            own
        }
        (Purpose::Other | Purpose::State, None) => own,
        (does, _) => does,
    }
}

fn on_its_face(unit: &shell::Unit) -> Purpose {
    if touches_ssh(&unit.text) {
        return Purpose::Forbidden(Ban::Ssh);
    }
    let fetched =
        unit.commands.iter().any(|words| words.first().is_some_and(|first| matches!(first.as_str(), "curl" | "wget")));
    let text = unit.text.as_str();
    if fetched
        && ["nodesource", "packages.", "apt", "yarnpkg.com/debian", "rpm."].iter().any(|part| text.contains(part))
    {
        return Purpose::PackageSource;
    }
    let runs = unit.commands.last().is_some_and(|words| {
        matches!(shell::program(words).first().map(String::as_str), Some("sh" | "bash" | "python" | "zsh"))
    });
    if fetched && runs && !text.contains("codecov.io") {
        return Purpose::Dependencies;
    }
    unit.commands.iter().map(|words| of_command(words)).max().unwrap_or(Purpose::Trivial)
}

fn touches_ssh(text: &str) -> bool {
    let parts =
        ["ssh-agent", "ssh-add", "ssh-keyscan", "~/.ssh", "$HOME/.ssh", "/root/.ssh", "SSH_PRIVATE_KEY", "SSH_KEY"];
    parts.iter().any(|part| text.contains(part))
}

/// Judges a program by its name, its first argument that is no option, and all its arguments.
type Judge = fn(&str, &str, &[&str]) -> Option<Purpose>;

/// Judges one command.
pub(super) fn of_command(words: &[String]) -> Purpose {
    if let Some(text) = inner_text(words) {
        return shell::split(&text).units.iter().map(of_unit).max().unwrap_or(Purpose::Trivial);
    }
    if matches!(words, [first, option, ..] if first == "command" && matches!(option.as_str(), "-v" | "-V")) {
        return Purpose::Trivial;
    }
    let in_tests = in_test_folder(words);
    let words = shell::program(words);
    let words: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
    let Some(name) = words.first().copied() else { return Purpose::Trivial };
    if words.len() == 1 && shell::is_assignment(name) {
        return Purpose::State;
    }
    let args = words.get(1..).unwrap_or_default();
    let first = args.iter().copied().find(|word| !word.starts_with(['-', '+', '$'])).unwrap_or_default();
    let asks = matches!(args, ["--version" | "-version" | "version"])
        || matches!(args, ["-v" | "-V"]) && !testing::is_runner(name)
        || testing::is_runner(name) && args.first() == Some(&"--version");
    if asks && name != "docker" {
        return Purpose::Trivial;
    }
    let judges: [Judge; 8] = [
        shell_words,
        packages,
        banned,
        preparing::databases,
        preparing::first,
        testing::judge,
        checks,
        preparing::dependencies,
    ];
    let judged = judges.iter().find_map(|judge| judge(name, first, args));
    match judged.unwrap_or_else(|| by_name(name)) {
        Purpose::Other if in_tests => Purpose::TestScript,
        purpose => purpose,
    }
}

/// What a shell is given to run: `bash -lc 'npm test'`. It is shorter than the command, so that this ends.
fn inner_text(words: &[String]) -> Option<String> {
    let words = shell::bare(words);
    let shell = words.first().map(|first| shell::base_name(first));
    if !matches!(shell, Some("bash" | "sh" | "dash" | "ash" | "zsh" | "su" | "runuser")) {
        return None;
    }
    let at = words
        .iter()
        .skip(1)
        .position(|word| word.starts_with('-') && !word.starts_with("--") && word.ends_with('c'))?;
    words.get(at + 2).map(|text| (*text).to_owned())
}

/// Whether the program is a script in a folder of tests: `./tests/run.sh`.
fn in_test_folder(words: &[String]) -> bool {
    let words = shell::bare(words);
    let Some((folder, name)) = words.first().and_then(|first| first.rsplit_once('/')) else { return false };
    let script = !name.contains('.')
        || [".sh", ".py", ".rb", ".js", ".php", ".pl", ".t", ".lua"].iter().any(|end| name.ends_with(end));
    script && folder.split('/').any(|part| matches!(part, "test" | "tests" | "spec" | "specs" | "t"))
}

/// Says whether a command starts a daemon in the box.
pub(super) fn starts_daemon(words: &[String]) -> bool {
    let words = shell::program(words);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some((name, args)) = words.split_first() else { return false };
    is_start(name, args.iter().copied().find(|word| !word.starts_with('-')).unwrap_or_default(), args)
}

fn is_start(name: &str, first: &str, args: &[&str]) -> bool {
    match name {
        "service" | "invoke-rc.d" | "systemctl" | "rc-service" | "pg_ctlcluster" | "pg_ctl" => {
            args.iter().any(|word| matches!(*word, "start" | "restart"))
        }
        "postgresql" | "mysql" | "mariadb" | "redis-server" | "rabbitmq-server" | "xvfb" | "dbus" => first == "start",
        _ => false,
    }
}

fn shell_words(name: &str, first: &str, args: &[&str]) -> Option<Purpose> {
    match name {
        // A daemon lives as long as its container: it has to be started in each.
        _ if is_start(name, first, args) => Some(Purpose::State),
        "cd" | "export" | "source" | "." | "set" | "unset" | "alias" | "pushd" | "popd" | "shopt" | "ulimit"
        | "umask" | "eval" | "nvm" | "rvm" | "asdf" | "deactivate" => Some(Purpose::State),
        "conda" if args.contains(&"activate") => Some(Purpose::State),
        "echo" | "printf" | "ls" | "pwd" | "whoami" | "which" | "date" | "hostname" | "uname" | "env" | "printenv"
        | "true" | ":" | "id" | "df" | "free" | "nproc" | "exit" | "type" | "tree" | "cat" | "sleep" => {
            Some(Purpose::Trivial)
        }
        _ => None,
    }
}

fn packages(name: &str, first: &str, args: &[&str]) -> Option<Purpose> {
    match (name, first) {
        ("apt-get" | "apt" | "apk" | "dnf" | "yum" | "microdnf", "update" | "makecache" | "clean" | "autoclean") => {
            Some(Purpose::PackageLists)
        }
        ("apt-get" | "apt" | "dnf" | "yum" | "microdnf", "install") | ("apk", "add") => Some(Purpose::Packages),
        ("apt-key" | "add-apt-repository" | "yum-config-manager" | "rpm", _) => Some(Purpose::PackageSource),
        ("dpkg", _) if args.contains(&"--add-architecture") => Some(Purpose::PackageSource),
        ("zypper", "refresh" | "ref" | "clean") => Some(Purpose::PackageLists),
        ("zypper", "install" | "in") => Some(Purpose::Packages),
        ("zypper", "addrepo" | "ar") => Some(Purpose::PackageSource),
        ("pacman", _) if args.iter().any(|word| word.starts_with("-S") && !word.contains(['c', 's', 'i'])) => {
            Some(if first.is_empty() { Purpose::PackageLists } else { Purpose::Packages })
        }
        ("dpkg" | "pacman" | "zypper" | "emerge" | "brew" | "choco" | "pkg" | "xbps-install" | "nix-env", _) => {
            Some(Purpose::Dependencies)
        }
        ("rm", _) if args.iter().any(|word| word.contains("/var/lib/apt/lists")) => Some(Purpose::PackageLists),
        ("tee" | "sed" | "cp" | "mv", _)
            if args
                .iter()
                .any(|word| word.contains("/etc/apt") || word.contains("/etc/apk") || word.contains("yum.repos")) =>
        {
            Some(Purpose::PackageSource)
        }
        _ => None,
    }
}

fn banned(name: &str, first: &str, args: &[&str]) -> Option<Purpose> {
    let has = |word: &str| args.contains(&word);
    let ban = match (name, first) {
        ("ssh" | "scp" | "sftp" | "sshpass", _) => Ban::Ssh,
        ("docker" | "docker-compose" | "podman" | "buildah" | "kaniko" | "skopeo" | "crane", _) => Ban::Docker,
        (
            "git",
            "push" | "remote" | "config" | "commit" | "tag" | "checkout" | "fetch" | "pull" | "merge" | "rebase"
            | "switch",
        ) => Ban::GitRemote,
        ("git", "reset" | "add" | "stash") => Ban::GitRemote,
        ("mvn", _) if args.iter().any(|word| word.contains("versions:set") || word.contains("release:")) => {
            Ban::Version
        }
        ("mvn" | "gradle", _) if only_uploads(name, args) => Ban::Upload,
        ("npm" | "poetry" | "yarn" | "pnpm", "version") if !args.is_empty() && !has("--no-git-tag-version") => {
            Ban::Version
        }
        (
            "bumpversion" | "bump2version" | "bump-my-version" | "semantic-release" | "standard-version" | "release-it"
            | "lerna",
            _,
        ) if name != "lerna" || matches!(first, "version" | "publish") => Ban::Version,
        (
            "terraform" | "tofu" | "helm" | "packer",
            "validate" | "fmt" | "lint" | "template" | "unittest" | "version",
        ) => {
            return Some(Purpose::Lint);
        }
        ("terraform" | "tofu" | "packer" | "helm", "init" | "get" | "dependency" | "repo" | "plugin") => {
            return Some(Purpose::Dependencies);
        }
        ("ansible-playbook", _) if has("--syntax-check") || has("--check") => return Some(Purpose::Lint),
        (
            "kubectl" | "helm" | "terraform" | "tofu" | "ansible-playbook" | "heroku" | "dpl" | "gcloud" | "az" | "oc"
            | "eb",
            _,
        ) => Ban::Deploy,
        (
            "rsync" | "lftp" | "ncftpput" | "surge" | "netlify" | "vercel" | "firebase" | "flyctl" | "fly" | "cap"
            | "wrangler",
            _,
        ) => Ban::Deploy,
        ("serverless" | "sls" | "cdk" | "pulumi" | "rancher" | "dep", "deploy" | "up") => Ban::Deploy,
        ("aws" | "gsutil" | "s3cmd" | "mc" | "rclone", _) => Ban::Upload,
        ("npm" | "yarn" | "pnpm" | "cargo" | "poetry" | "flit" | "hex" | "vsce", "publish") => Ban::Upload,
        ("twine", "upload") | ("gem", "push") | ("mix", "hex.publish") | ("nuget", "push") => Ban::Upload,
        ("dotnet", "nuget") if has("push") => Ban::Upload,
        ("dotnet", "sonarscanner") => Ban::Upload,
        (
            "codecov"
            | "codecov.sh"
            | "codeclimate-test-reporter"
            | "test-reporter"
            | "coveralls"
            | "cc-test-reporter"
            | "sonar-scanner"
            | "release-cli"
            | "glab"
            | "gh"
            | "codacy",
            _,
        ) => Ban::Upload,
        ("curl" | "wget", _) if uploads(args) => Ban::Upload,
        ("bash", _) if args.iter().any(|word| word.contains("codecov.io")) => Ban::Upload,
        _ => return None,
    };
    Some(Purpose::Forbidden(ban))
}

/// Goals of Maven and tasks of Gradle that send something away.
pub(super) fn sends(tool: &str, goal: &str) -> bool {
    match tool {
        "mvn" => {
            goal == "deploy"
                || goal.contains("sonar:sonar")
                || goal.starts_with("deploy:")
                || goal.starts_with("jib:build")
        }
        _ => {
            let task = goal.rsplit(':').next().unwrap_or(goal);
            task.starts_with("publish")
                || task.ends_with("Publish")
                || [
                    "uploadArchives",
                    "sonarqube",
                    "sonar",
                    "jib",
                    "dockerPush",
                    "bintrayUpload",
                    "appDistributionUpload",
                ]
                .contains(&task)
        }
    }
}

/// Whether nothing is left to do once nothing is sent; `mvn deploy` leaves the tests.
fn only_uploads(tool: &str, args: &[&str]) -> bool {
    let mut options = args.iter().copied().filter(|word| !word.starts_with(['-', '$'])).peekable();
    let quiet = args.iter().any(|word| word.starts_with("-DskipTests") || word.starts_with("-Dmaven.test.skip"));
    let clean = |goal: &str| sends(tool, goal) || matches!(goal, "clean" | "package" | "install" | "assemble" | "jar");
    match tool {
        "mvn" if !quiet => options.peek().is_some() && options.all(|goal| sends(tool, goal) && goal != "deploy"),
        _ => args.iter().any(|goal| sends(tool, goal)) && options.filter(|goal| !goal.contains(".xml")).all(clean),
    }
}

fn uploads(args: &[&str]) -> bool {
    args.iter().any(|word| {
        matches!(*word, "--upload-file" | "-T" | "-F" | "--form" | "--post-file" | "--data-binary")
            || word.starts_with("-F")
            || word.contains("codecov.io")
            || word.contains("hooks.slack.com")
    }) || args
        .windows(2)
        .any(|pair| matches!(pair[0], "-X" | "--request") && matches!(pair[1], "POST" | "PUT" | "DELETE" | "PATCH"))
}

fn checks(name: &str, first: &str, args: &[&str]) -> Option<Purpose> {
    let lint = match name {
        "flake8" | "pylint" | "ruff" | "mypy" | "black" | "isort" | "bandit" | "pyright" | "pre-commit"
        | "pycodestyle" | "pydocstyle" | "rubocop" | "brakeman" | "reek" | "haml-lint" | "eslint" | "tslint"
        | "prettier" | "stylelint" | "golangci-lint" | "golint" | "gofmt" | "staticcheck" | "phpcs"
        | "php-cs-fixer" | "phpstan" | "psalm" | "phpmd" | "pint" | "clang-format" | "clang-tidy" | "cppcheck"
        | "shellcheck" | "hadolint" | "yamllint" | "markdownlint" | "commitlint" | "ktlint" | "detekt"
        | "checkstyle" | "codespell" | "reuse" | "licensecheck" | "standard" | "standardrb" | "pronto" | "danger"
        | "twig-lint" | "rector" | "sphinxlint" | "rstcheck" => true,
        "cargo" => matches!(first, "fmt" | "clippy" | "deny" | "audit" | "machete"),
        "go" => matches!(first, "vet" | "fmt"),
        "mvn" | "gradle" => {
            let style =
                ["checkstyle", "spotless", "pmd", "spotbugs", "detekt", "ktlint", "lint", "findbugs", "license"];
            let mut goals = args.iter().filter(|word| !word.starts_with(['-', '$'])).peekable();
            goals.peek().is_some()
                && goals
                    .all(|goal| style.iter().any(|word| goal.to_ascii_lowercase().contains(word)) || *goal == "clean")
        }
        "npm" | "yarn" | "pnpm" => false,
        "mix" => matches!(first, "format" | "credo" | "dialyzer" | "sobelow"),
        "dotnet" => first == "format",
        "php" => first == "-l",
        _ => false,
    };
    if lint {
        return Some(Purpose::Lint);
    }
    let build = match name {
        "cargo" => matches!(first, "build" | "check" | "doc" | "bench" | "b"),
        "go" => matches!(first, "build" | "install" | "generate" | "run"),
        "mvn" => first != "dependency:go-offline" && first != "dependency:resolve",
        "gradle" | "ant" | "sbt" | "lein" | "stack" | "cabal" | "swift" | "bazel" | "meson" | "msbuild"
        | "xcodebuild" | "dune" => true,
        "tsc" | "webpack" | "vite" | "rollup" | "next" | "nuxt" | "gatsby" | "cmake" | "gcc" | "g++" | "clang"
        | "javac" | "configure" | "qmake" | "hugo" | "jekyll" | "mkdocs" | "sphinx-build" | "sphinx" | "latexmk"
        | "pdflatex" | "pyinstaller" | "autoreconf" | "build" | "grunt" | "gulp" | "catkin" | "colcon"
        | "catkin_make" | "pio" | "platformio" | "godot" | "arduino-cli" | "west" | "idf.py" | "xelatex"
        | "lualatex" | "arara" | "pandoc" | "nix-build" | "nix" | "bazelisk" | "buck" | "waf" | "b2" | "pulp"
        | "spago" | "electron-builder" | "parcel" | "esbuild" | "antora" | "zola" | "eleventy" | "docusaurus"
        | "typedoc" | "doxygen" | "asciidoctor" | "bookdown" | "mdbook" | "hexo" | "vuepress" | "gitbook" | "nanoc"
        | "middleman" | "pelican" => true,
        "ninja" => true,
        "ng" | "nx" | "flutter" | "forge" | "crystal" | "zig" => first == "build",
        "mix" => matches!(first, "compile" | "release"),
        "dotnet" => matches!(first, "build" | "publish" | "pack" | "msbuild"),
        "rails" | "rake" => first.starts_with("assets:"),
        _ => false,
    };
    build.then_some(Purpose::Build)
}

/// A script that is called like a test, or anything else.
fn by_name(name: &str) -> Purpose {
    let lower = name.to_ascii_lowercase();
    let stem = lower.strip_suffix(".sh").or_else(|| lower.strip_suffix(".py")).unwrap_or(&lower);
    let parts: Vec<&str> = stem.split(['-', '_', '.', ':']).collect();
    if parts.iter().any(|part| matches!(*part, "deploy" | "release" | "publish" | "upload")) {
        return Purpose::Forbidden(Ban::Deploy);
    }
    match parts.iter().any(|part| {
        matches!(*part, "test" | "tests" | "runtests" | "check" | "spec" | "specs" | "unittest" | "unittests")
    }) {
        true if stem != "test" || lower != name || name.contains('.') => Purpose::TestScript,
        _ => match parts.iter().any(|part| matches!(*part, "build" | "compile")) {
            true => Purpose::Build,
            false => Purpose::Other,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Purpose {
        shell::split(text).units.iter().map(of_unit).max().unwrap_or(Purpose::Trivial)
    }

    #[test]
    fn commands_are_recognised_by_what_they_run() {
        use Purpose::*;
        let table = [
            ("pytest -q", Test),
            ("python manage.py test --parallel", Test),
            ("python -m unittest discover", Test),
            ("bundle exec rake", Test),
            ("bundle exec rails test", Test),
            ("bin/rails db:create db:test:prepare", Database),
            ("npm test", Test),
            ("npm run test:unit -- --ci", Test),
            ("yarn test --coverage", Test),
            ("npm run e2e", EndToEnd),
            ("npm run lint", Lint),
            ("npm run build", Build),
            ("npm ci --no-audit", Dependencies),
            ("yarn --frozen-lockfile", Dependencies),
            ("yarn", Dependencies),
            ("cargo test --locked", Test),
            ("cargo +nightly clippy", Lint),
            ("go test ./...", Test),
            ("go mod download", Dependencies),
            ("./mvnw $MAVEN_CLI_OPTS test", Test),
            ("mvn -B clean install", Test),
            ("mvn package -DskipTests", Build),
            ("mvn clean install -DskipTests", Build),
            ("./gradlew build -x test", Build),
            ("./gradlew :app:check", Test),
            ("./gradlew assemble", Build),
            ("./vendor/bin/phpunit", Test),
            ("php artisan test", Test),
            ("php artisan migrate", Database),
            ("composer install", Dependencies),
            ("mix coveralls --preload-modules", Test),
            ("mix deps.get", Dependencies),
            ("dotnet test", Test),
            ("make check", Test),
            ("make -j4", Build),
            ("make", Build),
            ("make deps", Dependencies),
            ("ctest --output-on-failure", Test),
            ("./test.sh", TestScript),
            ("scripts/run-tests-in-docker.sh", TestScript),
            ("test -f x", Other),
            ("tox -e py312", Test),
            ("apt-get update -qq", PackageLists),
            ("apt-get install -y git", Packages),
            ("apk add --no-cache git", Packages),
            ("zypper --non-interactive refresh", PackageLists),
            ("zypper -n in git", Packages),
            ("zypper ar https://example.com/x.repo", PackageSource),
            ("zypper search git", Dependencies),
            ("pacman -Syu --noconfirm", PackageLists),
            ("pacman -S --noconfirm --needed git", Packages),
            ("pacman -Scc --noconfirm", Dependencies),
            ("pacman -U x.pkg.tar.zst", Dependencies),
            ("curl -sL https://deb.nodesource.com/setup_18.x | bash -", PackageSource),
            ("eval $(ssh-agent -s)", Forbidden(Ban::Ssh)),
            ("echo \"$SSH_PRIVATE_KEY\" | tr -d '\\r' | ssh-add -", Forbidden(Ban::Ssh)),
            ("echo $CI_REGISTRY_PASSWORD | docker login -u x --password-stdin", Forbidden(Ban::Docker)),
            ("docker --version", Forbidden(Ban::Docker)),
            ("git push origin HEAD", Forbidden(Ban::GitRemote)),
            ("git config --global user.email x", Forbidden(Ban::GitRemote)),
            ("git submodule update --init", Other),
            ("mvn versions:set -DnewVersion=1", Forbidden(Ban::Version)),
            ("npm version patch", Forbidden(Ban::Version)),
            ("kubectl apply -f x", Forbidden(Ban::Deploy)),
            ("curl -F token=x https://example.com", Forbidden(Ban::Upload)),
            ("curl -sSL https://install.python-poetry.org | python3 -", Dependencies),
            ("bash <(curl -s https://codecov.io/bash)", Forbidden(Ban::Upload)),
            ("cargo publish", Forbidden(Ban::Upload)),
            ("cd app", State),
            ("export A=b", State),
            (". venv/bin/activate", State),
            ("A=b", State),
            ("echo hello", Trivial),
            ("ruby -v", Trivial),
            ("command -v rsync", Trivial),
            ("command -v docker >/dev/null", Trivial),
            ("command rsync -a . host:", Forbidden(Ban::Deploy)),
            ("yarn cache clean", Dependencies),
            ("npm cache verify", Dependencies),
            ("cp a b", Other),
            ("pytest -v", Test),
            ("ctest -V", Test),
            ("phpunit --version", Trivial),
            ("pnpm --filter api test", Test),
            ("npm --prefix web run build", Build),
            ("yarn workspace ui test", Test),
            ("make -C release check", Test),
            ("make -C test all", Build),
            ("sudo -u www-data -E vendor/bin/phpunit", Test),
            ("php -d memory_limit=-1 vendor/bin/phpunit", Test),
            ("python3.9 -W error -m pytest", Test),
            ("bash -lc 'cd a && cargo test'", Test),
            ("./tests/run.sh", TestScript),
            ("gradle publish", Forbidden(Ban::Upload)),
            ("gradle build publish", Test),
            ("./gradlew ktlintCheck detekt", Lint),
            ("./gradlew connectedAndroidTest", EndToEnd),
            ("./gradlew assembleAndroidTest", Build),
            ("mvn deploy -DskipTests", Forbidden(Ban::Upload)),
            ("mvn verify sonar:sonar", Test),
            ("mvn sonar:sonar", Forbidden(Ban::Upload)),
            ("stack build --only-dependencies", Dependencies),
            ("terraform validate", Lint),
            ("terraform apply -auto-approve", Forbidden(Ban::Deploy)),
            ("python manage.py migrate", Database),
            ("mix ecto.create", Database),
        ];
        for (text, expected) in table {
            assert_eq!(check(text), expected, "{text}");
        }
    }
}
