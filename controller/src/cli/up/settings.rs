//! Where `devfleet up` keeps things, and the two configuration files that it writes once.
//!
//! A file that is there already is the truth: flags that say otherwise are told to have no effect.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::super::Session;
use super::super::context::Context;
use super::super::failure::CliError;
use super::UpArgs;

/// All places and addresses of one `devfleet up`. The data directory is locked for as long as this exists.
#[derive(Debug)]
pub(super) struct Settings {
    /// Everything is below it.
    pub(super) data_dir: PathBuf,
    /// The children's logs.
    pub(super) logs: PathBuf,
    /// The children's process ids.
    pub(super) run: PathBuf,
    /// controller.toml.
    pub(super) controller_file: PathBuf,
    /// host.toml.
    pub(super) host_file: PathBuf,
    /// Where the controller writes the first operator's token.
    pub(super) bootstrap_file: PathBuf,
    /// The authority that the controller makes.
    pub(super) authority_file: PathBuf,
    /// The host daemon's identity.
    pub(super) identity: PathBuf,
    /// The controller's URL.
    pub(super) url: String,
    /// The host's name.
    pub(super) host_name: String,
    _lock: File,
}

#[derive(Serialize)]
struct ControllerToml {
    data_dir: PathBuf,
    listen: String,
    names: Vec<String>,
    max_running: u32,
}

#[derive(Serialize)]
struct HostToml {
    data_dir: PathBuf,
    controller: String,
    name: String,
    engine: String,
    slots: u32,
}

impl Settings {
    /// Locks the data directory, writes the configuration unless it is there, and reads back what is true.
    pub(super) fn prepare(args: &UpArgs, session: &Session) -> Result<Settings, CliError> {
        let data_dir = match &args.data_dir {
            Some(dir) => std::path::absolute(dir).map_err(|source| failed("read", dir, source))?,
            None => default_data_dir(|name| std::env::var(name).ok()),
        };
        let (logs, run) = (data_dir.join("logs"), data_dir.join("run"));
        for dir in [&data_dir, &logs, &run] {
            create_private_dir(dir).map_err(|source| failed("create", dir, source))?;
        }
        let lock = lock(&data_dir)?;
        let (controller_file, host_file) = (data_dir.join("controller.toml"), data_dir.join("host.toml"));
        write_if_absent(&controller_file, &controller_toml(args, &data_dir)?)?;
        let controller = read(&controller_file)?;
        let listen: SocketAddr = text(&controller, "listen", &controller_file)?
            .parse()
            .map_err(|_| CliError::Usage(format!("`listen` in {} must be ADDRESS:PORT", controller_file.display())))?;
        let url = url(listen);
        write_if_absent(&host_file, &host_toml(args, &data_dir, &url)?)?;
        let host = read(&host_file)?;
        for line in ignored(args, &controller, &host) {
            session.output.note(&line);
        }
        refuse_foreign_context(&session.context_path, &url)?;
        Ok(Settings {
            bootstrap_file: data_dir.join("bootstrap-token"),
            authority_file: PathBuf::from(text(&controller, "data_dir", &controller_file)?).join("ca/authority.pem"),
            identity: PathBuf::from(text(&host, "data_dir", &host_file)?).join("identity"),
            host_name: text(&host, "name", &host_file)?,
            url,
            logs,
            run,
            controller_file,
            host_file,
            data_dir,
            _lock: lock,
        })
    }
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> CliError {
    CliError::File { action, path: path.to_owned(), source }
}

/// Returns `$XDG_DATA_HOME/devfleet`, or what stands for it.
pub(super) fn default_data_dir(variable: impl Fn(&str) -> Option<String>) -> PathBuf {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let data = set("XDG_DATA_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(set("HOME").unwrap_or_else(|| "/var/lib".into())).join(".local/share"));
    data.join("devfleet")
}

fn create_private_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn lock(data_dir: &Path) -> Result<File, CliError> {
    let path = data_dir.join("up.lock");
    let opened = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let mut file = opened.map_err(|source| failed("create", &path, source))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let pid = std::fs::read_to_string(&path).unwrap_or_default();
            return Err(CliError::Local {
                problem: format!("devfleet is up already in {} (process {})", data_dir.display(), pid.trim()),
                advice: "use it from another terminal; stop it there with Ctrl-C; or run a second one with another --data-dir \
                         and --listen"
                    .into(),
            });
        }
        Err(error) => return Err(failed("write", &path, error.into())),
    }
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|source| failed("write", &path, source))?;
    Ok(file)
}

fn controller_toml(args: &UpArgs, data_dir: &Path) -> Result<String, CliError> {
    let listen = args.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 7443)));
    if listen.port() == 0 {
        return Err(CliError::Usage(
            "--listen needs a port other than 0, so that hosts and people find it again".into(),
        ));
    }
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let own = listen.ip().to_string();
    if !listen.ip().is_unspecified() && !names.contains(&own) {
        names.push(own);
    }
    let max_running = args.max_running.unwrap_or(5);
    written(&ControllerToml { data_dir: data_dir.join("controller"), listen: listen.to_string(), names, max_running })
}

fn host_toml(args: &UpArgs, data_dir: &Path, url: &str) -> Result<String, CliError> {
    let from_docker = std::env::var("DOCKER_HOST").ok().filter(|engine| engine.starts_with("unix://"));
    let engine = args.engine.clone().or(from_docker);
    written(&HostToml {
        data_dir: data_dir.join("host"),
        controller: url.to_owned(),
        name: host_name(&rustix::system::uname().nodename().to_string_lossy()),
        engine: engine.unwrap_or_else(|| "unix:///var/run/docker.sock".into()),
        slots: args.slots.unwrap_or(10),
    })
}

fn written(content: &impl Serialize) -> Result<String, CliError> {
    let body =
        toml::to_string(content).map_err(|error| CliError::Usage(format!("a path cannot be written: {error}")))?;
    Ok(format!("# Written by `devfleet up` and never changed by it again; see docs/configuration.md.\n{body}"))
}

/// Reduces the machine's name to what a host may be called.
fn host_name(node: &str) -> String {
    let first = node.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let kept: String = first.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(63).collect();
    let kept = kept.trim_start_matches('-');
    if kept.is_empty() { "local".into() } else { kept.into() }
}

fn url(listen: SocketAddr) -> String {
    match listen {
        SocketAddr::V4(address) if address.ip().is_unspecified() => format!("https://127.0.0.1:{}", address.port()),
        SocketAddr::V6(address) if address.ip().is_unspecified() => format!("https://127.0.0.1:{}", address.port()),
        address => format!("https://{address}"),
    }
}

fn write_if_absent(path: &Path, content: &str) -> Result<(), CliError> {
    match File::options().write(true).create_new(true).open(path) {
        Ok(mut file) => file.write_all(content.as_bytes()).map_err(|source| failed("write", path, source)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(failed("create", path, source)),
    }
}

fn read(path: &Path) -> Result<toml::Table, CliError> {
    let content = std::fs::read_to_string(path).map_err(|source| failed("read", path, source))?;
    content.parse().map_err(|error: toml::de::Error| {
        CliError::Usage(format!(
            "{} is not TOML: {}; mend it, or delete it to have it written anew",
            path.display(),
            error.message()
        ))
    })
}

fn text(table: &toml::Table, key: &str, path: &Path) -> Result<String, CliError> {
    let found = table.get(key).and_then(toml::Value::as_str).map(str::to_owned);
    found.ok_or_else(|| CliError::Usage(format!("{} lacks the text `{key}`", path.display())))
}

/// Names the flags that an older file overrules.
fn ignored(args: &UpArgs, controller: &toml::Table, host: &toml::Table) -> Vec<String> {
    let as_text = |value: &toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let wanted = [
        ("--listen", args.listen.map(|listen| listen.to_string()), controller.get("listen"), "controller.toml"),
        ("--max-running", args.max_running.map(|n| n.to_string()), controller.get("max_running"), "controller.toml"),
        ("--slots", args.slots.map(|n| n.to_string()), host.get("slots"), "host.toml"),
        ("--engine", args.engine.clone(), host.get("engine"), "host.toml"),
    ];
    let overruled = wanted.into_iter().filter_map(|(flag, wanted, found, file)| {
        let (wanted, found) = (wanted?, found.map(as_text).unwrap_or_default());
        (wanted != found)
            .then(|| format!("{flag} has no effect: {file} is there already and says {found}; change it there"))
    });
    overruled.collect()
}

fn refuse_foreign_context(path: &Path, url: &str) -> Result<(), CliError> {
    match Context::load(path) {
        Ok(context) if !context.controllers.iter().any(|known| known == url) => Err(CliError::Local {
            problem: format!(
                "the context {} is for another controller, {}",
                path.display(),
                context.controllers.join(", ")
            ),
            advice: "keep it, and give this one a place of its own: `devfleet --context-file FILE up`".into(),
        }),
        Ok(_) | Err(CliError::NoContext(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> UpArgs {
        UpArgs { data_dir: None, listen: None, slots: None, max_running: None, engine: None }
    }

    #[test]
    fn the_files_hold_what_the_flags_say() {
        let flags = UpArgs {
            listen: Some("10.0.0.7:9000".parse().expect("an address")),
            slots: Some(3),
            max_running: Some(8),
            engine: Some("unix:///run/other.sock".into()),
            data_dir: None,
        };
        let controller: toml::Table = controller_toml(&flags, Path::new("/d")).expect("text").parse().expect("TOML");
        assert_eq!(controller["data_dir"].as_str(), Some("/d/controller"));
        assert_eq!(controller["listen"].as_str(), Some("10.0.0.7:9000"));
        assert_eq!(controller["names"].as_array().map(Vec::len), Some(3));
        assert_eq!(controller["max_running"].as_integer(), Some(8));
        let host: toml::Table = host_toml(&flags, Path::new("/d"), "https://x").expect("text").parse().expect("TOML");
        assert_eq!((host["slots"].as_integer(), host["engine"].as_str()), (Some(3), Some("unix:///run/other.sock")));
        assert!(ignored(&flags, &controller, &host).is_empty());
        assert!(ignored(&args(), &controller, &host).is_empty());
        let other = UpArgs { slots: Some(4), ..args() };
        assert_eq!(
            ignored(&other, &controller, &host),
            ["--slots has no effect: host.toml is there already and says 3; change it there"]
        );
    }

    #[test]
    fn addresses_and_names_become_usable() {
        let url_of = |listen: &str| url(listen.parse().expect("an address"));
        assert_eq!(url_of("0.0.0.0:7443"), "https://127.0.0.1:7443");
        assert_eq!(url_of("10.1.2.3:1"), "https://10.1.2.3:1");
        assert_eq!(url_of("[::1]:7443"), "https://[::1]:7443");
        assert_eq!(["Build-7.example.com", "_", ""].map(host_name), ["build-7", "local", "local"]);
        let zero = UpArgs { listen: Some("127.0.0.1:0".parse().expect("an address")), ..args() };
        assert!(controller_toml(&zero, Path::new("/d")).is_err());
    }

    #[test]
    fn the_lock_keeps_a_second_one_out_and_says_who_holds_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = lock(dir.path()).expect("locked");
        let refused = lock(dir.path()).expect_err("held").to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        assert!(lock(dir.path()).is_ok());
    }

    #[test]
    fn the_default_place_follows_the_environment() {
        let with = |xdg: &'static str| {
            default_data_dir(move |name| Some(if name == "HOME" { "/home/a" } else { xdg }.to_owned()))
        };
        assert_eq!(with("/x"), Path::new("/x/devfleet"));
        assert_eq!(with(""), Path::new("/home/a/.local/share/devfleet"));
    }
}
