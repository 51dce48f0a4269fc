//! What a recipe does to apt's sources on a release that only the archive has, run by a real shell on files of its own.

use std::path::Path;
use std::process::Command;

use devfleet_controller::environment::{AgentNeeds, recipe};
use devfleet_shared::environment::EnvironmentSpec;

/// The lines of the recipe that stand before anything is installed, as the shell gets them, with `/etc` in this folder.
fn script(folder: &Path) -> String {
    let environment = EnvironmentSpec { image: "python:3.6".into(), ..EnvironmentSpec::default() };
    let text = recipe(&environment, &[], &AgentNeeds::default()).dockerfile;
    let (_, behind) = text.split_once("\nRUN ").expect("a RUN line");
    let (script, _) = behind.split_once("if command -v git").expect("git is looked for behind it");
    script.replace("\\\n", " ").replace("/etc/", &format!("{}/etc/", folder.display()))
}

struct After {
    sources: String,
    more: String,
    output: String,
    unchecked_dates: bool,
}

fn run(release: &str, sources: &str) -> After {
    let folder = tempfile::tempdir().expect("a folder");
    let apt = folder.path().join("etc/apt");
    for name in ["sources.list.d", "apt.conf.d"] {
        std::fs::create_dir_all(apt.join(name)).expect("a folder");
    }
    std::fs::write(folder.path().join("etc/os-release"), release).expect("written");
    for name in ["sources.list", "sources.list.d/more.list"] {
        std::fs::write(apt.join(name), sources).expect("written");
    }
    let output = Command::new("sh").args(["-euc", &script(folder.path())]).output().expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| std::fs::read_to_string(apt.join(name)).expect("it is there");
    After {
        sources: read("sources.list"),
        more: read("sources.list.d/more.list"),
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        unchecked_dates: apt.join("apt.conf.d/99devfleet-archive").is_file()
            && read("apt.conf.d/99devfleet-archive") == "Acquire::Check-Valid-Until \"false\";\n",
    }
}

#[test]
fn packages_of_a_release_that_was_moved_come_from_the_archive() {
    let archive = "http://archive.debian.org";
    let table = [
        (
            "ID=debian\nVERSION_ID=\"9\"\n",
            "deb http://deb.debian.org/debian stretch main\ndeb http://security.debian.org/debian-security stretch/updates main\n\
             deb http://deb.debian.org/debian stretch-updates main\n",
            format!("deb {archive}/debian stretch main\ndeb {archive}/debian-security stretch/updates main\n"),
        ),
        (
            "ID=debian\nVERSION_ID=\"10\"\n",
            "# deb http://snapshot.debian.org/archive/debian/20220801T000000Z buster main\ndeb https://ftp.us.debian.org/debian buster main contrib\n\
             deb http://deb.debian.org/debian-security buster/updates main\ndeb https://packages.example.com/debian buster main\n",
            format!(
                "# deb http://snapshot.debian.org/archive/debian/20220801T000000Z buster main\ndeb {archive}/debian buster main contrib\n\
                 deb {archive}/debian-security buster/updates main\ndeb https://packages.example.com/debian buster main\n"
            ),
        ),
        (
            "ID=debian\nVERSION_ID=\"8\"\n",
            "deb http://httpredir.debian.org/debian jessie main\ndeb http://security.debian.org/ jessie/updates main\n\
             deb-src http://security.debian.org jessie/updates main\n",
            format!(
                "deb [trusted=yes] {archive}/debian jessie main\ndeb [trusted=yes] {archive}/debian-security jessie/updates main\n\
                 deb-src [trusted=yes] {archive}/debian-security jessie/updates main\n"
            ),
        ),
        (
            "ID=ubuntu\nVERSION_ID=\"19.10\"\n",
            "deb http://archive.ubuntu.com/ubuntu/ eoan main\ndeb http://de.archive.ubuntu.com/ubuntu eoan-updates main\n\
             deb http://security.ubuntu.com/ubuntu/ eoan-security main\n",
            "deb http://old-releases.ubuntu.com/ubuntu/ eoan main\ndeb http://old-releases.ubuntu.com/ubuntu eoan-updates main\n\
             deb http://old-releases.ubuntu.com/ubuntu/ eoan-security main\n"
                .to_owned(),
        ),
    ];
    for (release, before, expected) in table {
        let after = run(release, before);
        assert_eq!((&after.sources, &after.more), (&expected, &expected), "{release}");
        assert!(after.unchecked_dates, "{release}");
        assert!(after.output.contains("come from the archive"), "{}", after.output);
    }
}

#[test]
fn packages_of_a_release_that_is_kept_come_from_where_they_came() {
    let before = "deb http://deb.debian.org/debian x main\ndeb http://deb.debian.org/debian x-updates main\n\
                  deb http://archive.ubuntu.com/ubuntu/ x main\n";
    for release in ["ID=debian\nVERSION_ID=\"12\"\n", "ID=ubuntu\nVERSION_ID=\"20.04\"\n", "ID=debian\n", ""] {
        let after = run(&format!("ID=\nVERSION_ID=\n{release}"), before);
        assert_eq!((after.sources.as_str(), after.output.as_str()), (before, ""), "{release}");
        assert!(!after.unchecked_dates, "{release}");
    }
}
