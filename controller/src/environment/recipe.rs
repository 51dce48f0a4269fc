//! The Dockerfile of an environment: the CI image, git, CI's own OS packages, the agent, a workspace.
//!
//! It is for the classic builder and any POSIX `sh`. It leaves ENTRYPOINT, CMD and PATH alone, ends with the user that
//! the image began with, and uses no network when there is nothing to add.

use devfleet_shared::environment::{EnvironmentSpec, Recipe};

use super::AgentNeeds;
use super::commands::is_package;
use super::gone;
use super::variables::WORKSPACE;

/// Adds git where it is missing. The exit code 42 and the message are how the host knows that it cannot be added.
const ADD_GIT: &str = "\
    if command -v git >/dev/null 2>&1; then :; \\
    elif command -v apt-get >/dev/null 2>&1; then export DEBIAN_FRONTEND=noninteractive; \\
      apt-get update && apt-get install -y --no-install-recommends git ca-certificates && rm -rf /var/lib/apt/lists/*; \\
    elif command -v apk >/dev/null 2>&1; then apk add --no-cache git ca-certificates; \\
    elif command -v dnf >/dev/null 2>&1; then dnf install -y git ca-certificates && dnf clean all; \\
    elif command -v microdnf >/dev/null 2>&1; then microdnf install -y git ca-certificates && microdnf clean all; \\
    elif command -v yum >/dev/null 2>&1; then yum install -y git ca-certificates && yum clean all; \\
    elif command -v zypper >/dev/null 2>&1; then zypper --non-interactive install git ca-certificates && zypper clean; \\
    elif command -v pacman >/dev/null 2>&1; then pacman -Syu --noconfirm --needed git ca-certificates && rm -rf /var/cache/pacman/pkg/*; \\
    else echo 'devfleet: this image has no git and no package manager that could add it' >&2; exit 42; fi
";

/// What apt's sources become on a release that only an archive has: none is left of the suites of updates, snapshots stay.
const DEBIAN_ARCHIVE: &str = r"-e '/^deb.* [a-z]*-updates /d' \
          -e 's@https\{0,1\}://security\.debian\.org\(/debian-security\)\{0,1\}/\{0,1\} @http://archive.debian.org/debian-security @' \
          -e 's@https\{0,1\}://\(deb\|httpredir\|http\|ftp[a-z.]*\|cdn-fastly\.deb\)\.debian\.\(org\|net\)/@http://archive.debian.org/@'";
/// All keys have expired: no signature can be checked any more.
const DEBIAN_UNSIGNED: &str = r"-e 's@^\(deb[a-z-]*\) http://archive@\1 [trusted=yes] http://archive@'";
const UBUNTU_ARCHIVE: &str = r"-e 's@https\{0,1\}://\([a-z0-9.-]*\.\)\{0,1\}\(archive\|security\)\.ubuntu\.com/@http://old-releases.ubuntu.com/@'";

/// Lets apt find the packages of such releases before anything is installed. Nothing there is signed anew, so that the
/// dates of signatures are not looked at. It is the beginning of the RUN line that adds git.
fn archived() -> String {
    let (signed, unsigned) = gone::debian_numbers();
    let case = |system: &str, numbers: &[&str], edits: &str| {
        let names: Vec<String> = numbers.iter().map(|number| format!("{system}-{number}")).collect();
        let lines = [
            &format!("      {})", names.join("|")),
            "        echo \"devfleet: packages of $release come from the archive\";",
            "        for list in /etc/apt/sources.list /etc/apt/sources.list.d/*; do",
            "          [ ! -f \"$list\" ] || sed -i",
            &format!("          {edits} \"$list\";"),
            "        done;",
            "        echo 'Acquire::Check-Valid-Until \"false\";' > /etc/apt/apt.conf.d/99devfleet-archive;;",
        ];
        lines.map(|line| format!("{line} \\\n")).concat()
    };
    [
        "RUN release=; if [ -d /etc/apt ] && [ -r /etc/os-release ]; then \\\n",
        "      release=\"$(. /etc/os-release; echo \"$ID-$VERSION_ID\")\"; fi; \\\n",
        "    case \"$release\" in \\\n",
        &case("debian", &signed, DEBIAN_ARCHIVE),
        &case("debian", &unsigned, &format!("{DEBIAN_ARCHIVE} \\\n          {DEBIAN_UNSIGNED}")),
        &case("ubuntu", &gone::ubuntu_numbers().collect::<Vec<_>>(), UBUNTU_ARCHIVE),
        "    esac; \\\n    ",
    ]
    .concat()
}

/// Makes the recipe of an environment: `packages` are CI's own, by the names of the image's package manager.
pub fn recipe(environment: &EnvironmentSpec, packages: &[String], agent: &AgentNeeds) -> Recipe {
    let mut text = format!("FROM {}\n", environment.image);
    text.push_str("# The user that the image runs as; whoever builds it says so, because FROM does not.\n");
    text.push_str("ARG DEVFLEET_USER=0\n");
    // By number: an image without /etc/passwd knows no `root`.
    text.push_str("USER 0\n");
    text.push_str(&archived());
    text.push_str(ADD_GIT);
    let mut wanted: Vec<&str> =
        packages.iter().chain(&agent.packages).map(String::as_str).filter(|name| is_package(name)).collect();
    let mut seen = std::collections::BTreeSet::new();
    wanted.retain(|name| seen.insert(*name));
    if !wanted.is_empty() {
        text.push_str(&add_packages(&wanted.join(" ")));
    }
    for file in &agent.files {
        let target = format!("/usr/local/bin/{}", file.name);
        text.push_str(&format!("COPY [{}, {}]\n", quoted(&file.name), quoted(&target)));
        text.push_str(&format!("RUN chmod 0755 {}\n", shell_quoted(&target)));
    }
    for line in &agent.install {
        text.push_str(&format!("RUN {}\n", one_line(line)));
    }
    let user = match &environment.user {
        Some(user) => shell_quoted(user),
        None => "${DEVFLEET_USER:-0}".to_owned(),
    };
    let chown = if environment.user.is_some() { user.clone() } else { format!("\"{user}\"") };
    text.push_str(&format!("RUN mkdir -p {WORKSPACE} && chown {chown} {WORKSPACE}\n"));
    text.push_str(&format!("WORKDIR {WORKSPACE}\n"));
    text.push_str(&format!("USER {}\n", user.trim_matches('\'')));
    Recipe::new(text, agent.files.clone(), environment.platform.clone().unwrap_or_default())
}

/// Installs with what CI would have got: recommended packages too.
fn add_packages(names: &str) -> String {
    format!(
        "RUN if command -v apt-get >/dev/null 2>&1; then export DEBIAN_FRONTEND=noninteractive; \\\n      \
         apt-get update && apt-get install -y {names} && rm -rf /var/lib/apt/lists/*; \\\n    \
         elif command -v apk >/dev/null 2>&1; then apk add --no-cache {names}; \\\n    \
         elif command -v dnf >/dev/null 2>&1; then dnf install -y {names} && dnf clean all; \\\n    \
         elif command -v microdnf >/dev/null 2>&1; then microdnf install -y {names} && microdnf clean all; \\\n    \
         elif command -v yum >/dev/null 2>&1; then yum install -y {names} && yum clean all; \\\n    \
         elif command -v zypper >/dev/null 2>&1; then zypper --non-interactive install {names} && zypper clean; \\\n    \
         elif command -v pacman >/dev/null 2>&1; then pacman -Syu --noconfirm --needed {names} && rm -rf /var/cache/pacman/pkg/*; \\\n    \
         else echo 'devfleet: this image has no package manager that could add {names}' >&2; exit 43; fi\n"
    )
}

/// A JSON text, as the exec form of COPY wants it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A RUN line ends with its line: further ones are joined.
fn one_line(line: &str) -> String {
    let parts: Vec<&str> =
        line.lines().map(|part| part.trim().trim_end_matches('\\').trim()).filter(|part| !part.is_empty()).collect();
    parts.join(" && ")
}

#[cfg(test)]
mod tests {
    use devfleet_shared::environment::RecipeFile;
    use devfleet_shared::id::Digest;

    use super::*;

    fn environment(image: &str) -> EnvironmentSpec {
        EnvironmentSpec { image: image.into(), ..EnvironmentSpec::default() }
    }

    fn agent() -> AgentNeeds {
        let file = RecipeFile { name: "claude".into(), host_path: "/opt/claude".into(), digest: Digest::of(b"1") };
        AgentNeeds { packages: vec!["ripgrep".into()], files: vec![file], install: vec!["claude --version".into()] }
    }

    #[test]
    fn the_dockerfile_has_its_parts_in_order_and_leaves_the_image_alone() {
        let recipe = recipe(&environment("ruby:3.2"), &["libpq-dev".into(), "git".into()], &agent());
        let order = [
            "FROM ruby:3.2\n",
            "ARG DEVFLEET_USER=0\n",
            "USER 0\n",
            "archive.debian.org",
            "old-releases.ubuntu.com",
            "command -v git",
            "exit 42",
            "apt-get install -y libpq-dev git ripgrep",
            "COPY [\"claude\", \"/usr/local/bin/claude\"]\n",
            "RUN chmod 0755 '/usr/local/bin/claude'\n",
            "RUN claude --version\n",
            "RUN mkdir -p /workspace && chown \"${DEVFLEET_USER:-0}\" /workspace\n",
            "WORKDIR /workspace\nUSER ${DEVFLEET_USER:-0}\n",
        ];
        let mut rest = recipe.dockerfile.as_str();
        for part in order {
            let at = rest
                .find(part)
                .unwrap_or_else(|| panic!("{part:?} is missing or out of order in\n{}", recipe.dockerfile));
            rest = &rest[at + part.len()..];
        }
        for word in ["ENTRYPOINT", "CMD", "ENV", "--mount", "<<", "# syntax"] {
            assert!(!recipe.dockerfile.contains(word), "{word}");
        }
    }

    #[test]
    fn nothing_is_installed_that_nobody_asked_for_and_no_name_breaks_out() {
        let plain = recipe(&environment("ruby:3.2"), &[], &AgentNeeds::default());
        assert_eq!(plain.dockerfile.matches("RUN").count(), 2, "{}", plain.dockerfile);
        let hostile = recipe(
            &environment("ruby:3.2"),
            &["x; rm -rf /".into(), "$(id)".into(), "-o=x".into()],
            &AgentNeeds::default(),
        );
        assert_eq!(hostile.dockerfile, plain.dockerfile);
    }

    #[test]
    fn the_user_of_the_ci_file_is_taken_over() {
        let environment = EnvironmentSpec {
            user: Some("1000:1000".into()),
            platform: Some("linux/arm64".into()),
            ..environment("a")
        };
        let recipe = recipe(&environment, &[], &AgentNeeds::default());
        assert!(recipe.dockerfile.contains("chown '1000:1000' /workspace\n"), "{}", recipe.dockerfile);
        assert!(recipe.dockerfile.ends_with("USER 1000:1000\n"), "{}", recipe.dockerfile);
        assert_eq!(recipe.platform, "linux/arm64");
    }

    #[test]
    fn what_goes_into_the_image_changes_the_digest_and_nothing_else_does() {
        let base = recipe(&environment("a:1"), &["git".into()], &agent()).digest;
        assert_eq!(base, recipe(&environment("a:1"), &["git".into()], &agent()).digest);
        let with_variables = EnvironmentSpec { variables: [("A".into(), "b".into())].into(), ..environment("a:1") };
        assert_eq!(base, recipe(&with_variables, &["git".into()], &agent()).digest);
        assert_ne!(base, recipe(&environment("a:2"), &["git".into()], &agent()).digest);
        assert_ne!(base, recipe(&environment("a:1"), &["curl".into()], &agent()).digest);
        assert_ne!(base, recipe(&environment("a:1"), &["git".into()], &AgentNeeds::default()).digest);
        let pinned =
            |letter: &str| recipe(&environment(&format!("a@sha256:{}", letter.repeat(64))), &[], &agent()).digest;
        assert_ne!(pinned("0"), pinned("1"), "a base that is named by its content counts by its content");
        let platform = EnvironmentSpec { platform: Some("linux/arm64".into()), ..environment("a:1") };
        assert_ne!(base, recipe(&platform, &["git".into()], &agent()).digest);
        let user = EnvironmentSpec { user: Some("1000".into()), ..environment("a:1") };
        assert_ne!(base, recipe(&user, &["git".into()], &agent()).digest);
    }
}
