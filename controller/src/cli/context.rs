//! The context file: which controller to ask, whom to trust, and the token. Readable by its owner only.

use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use devfleet_shared::secret::Secret;
use serde::{Deserialize, Serialize};

use super::failure::CliError;

/// What the CLI must know to talk to a controller.
#[derive(Debug, Clone)]
pub struct Context {
    /// The controllers' URLs, `https://127.0.0.1:7443`: the first that answers is asked.
    pub controllers: Vec<String>,
    /// The certificate of the authority to trust, PEM.
    pub authority: String,
    /// The token.
    pub token: Secret,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContextFile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    controller: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    controllers: Vec<String>,
    authority: String,
    token: String,
}

/// Returns where the context file is: `$DEVFLEET_CONTEXT`, else `$XDG_CONFIG_HOME/devfleet/context.toml`.
pub fn default_path(variable: impl Fn(&str) -> Option<String>) -> PathBuf {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if let Some(path) = set("DEVFLEET_CONTEXT") {
        return path.into();
    }
    let config = set("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(set("HOME").unwrap_or_else(|| ".".into())).join(".config"));
    config.join("devfleet/context.toml")
}

impl Context {
    /// Reads the context file and checks it.
    pub fn load(path: &Path) -> Result<Context, CliError> {
        let wrong = |problem: String| CliError::Context { path: path.to_owned(), problem };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(CliError::NoContext(path.to_owned())),
            Err(source) => return Err(CliError::File { action: "read", path: path.to_owned(), source }),
        };
        let mode = mode(path).map_err(|source| CliError::File { action: "read", path: path.to_owned(), source })?;
        if mode & 0o077 != 0 {
            return Err(wrong(format!(
                "it holds a token, and others may read it (mode {mode:03o}): run `chmod 600 {}`, and revoke the token if \
                 others did",
                path.display()
            )));
        }
        // The parser's own message would quote the file, and with it the token.
        let file: ContextFile = toml::from_str(&text).map_err(|error| {
            wrong(format!(
                "it must hold the texts controller (or the list controllers), authority and token, nothing else ({})",
                at(&text, &error)
            ))
        })?;
        let controllers = match (file.controller, file.controllers) {
            (Some(one), several) if several.is_empty() => vec![one],
            (None, several) => several,
            (Some(_), _) => return Err(wrong("write all URLs into `controllers`, and leave `controller` out".into())),
        };
        let context = Context { controllers, authority: file.authority, token: Secret::new(file.token) };
        context.check().map_err(|problem| wrong(problem.into()))?;
        Ok(context)
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.controllers.is_empty() {
            return Err("it must name a controller: `controller` with a URL, or `controllers` with several");
        }
        if !self.controllers.iter().all(|controller| controller.starts_with("https://")) {
            return Err("`controller` must be a URL that starts with https://, and so must each of `controllers`");
        }
        if !self.authority.contains("-----BEGIN CERTIFICATE-----") {
            return Err("`authority` must be a certificate in PEM");
        }
        if self.token.expose().is_empty() || !self.token.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("`token` must be the text that `devfleet tokens create` printed");
        }
        Ok(())
    }

    /// Writes the context file with mode 0600, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), CliError> {
        let failed = |source| CliError::File { action: "write", path: path.to_owned(), source };
        let file = ContextFile {
            controller: self.controllers.first().filter(|_| self.controllers.len() == 1).cloned(),
            controllers: if self.controllers.len() == 1 { Vec::new() } else { self.controllers.clone() },
            authority: self.authority.clone(),
            token: self.token.expose().to_owned(),
        };
        let text = toml::to_string(&file).map_err(|error| failed(std::io::Error::other(error)))?;
        write_private(path, text.as_bytes()).map_err(failed)
    }
}

/// Writes a file with mode 0600 and replaces the old one in one step.
pub fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = PathBuf::from(name);
    let _ = std::fs::remove_file(&new);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&new, path));
    written.inspect_err(|_| drop(std::fs::remove_file(&new)))
}

/// Returns a file's permission bits.
pub fn mode(path: &Path) -> std::io::Result<u32> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o777)
}

fn at(text: &str, error: &toml::de::Error) -> String {
    match error.span() {
        Some(span) => format!("line {}", text[..span.start.min(text.len())].matches('\n').count() + 1),
        None => "a field is missing".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        Context {
            controllers: vec!["https://127.0.0.1:7443".into()],
            authority: "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n".into(),
            token: Secret::new("dft_1_canary"),
        }
    }

    #[test]
    fn a_context_is_read_as_written_and_is_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("deep/er/context.toml");
        context().save(&path).expect("written");
        assert_eq!(mode(&path).expect("a mode"), 0o600);
        let back = Context::load(&path).expect("read");
        assert_eq!((back.controllers, back.authority), (context().controllers, context().authority));
        assert_eq!(back.token.expose(), "dft_1_canary");
        context().save(&path).expect("replaced");
        let several = ["https://a:1", "https://b:1"].map(String::from).to_vec();
        Context { controllers: several.clone(), ..context() }.save(&path).expect("written");
        assert_eq!(Context::load(&path).expect("read").controllers, several);
        assert_eq!(std::fs::read_dir(path.parent().expect("a folder")).expect("listed").count(), 1);
    }

    #[test]
    fn a_context_that_others_may_read_is_refused_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("context.toml");
        context().save(&path).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("changed");
        let refused = Context::load(&path).expect_err("refused").to_string();
        assert!(refused.contains("chmod 600"), "{refused}");
    }

    #[test]
    fn a_broken_context_is_explained_without_quoting_the_token() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("context.toml");
        for text in ["token = \"canary\"\nx", "controller = 1\ntoken = \"canary\"", "token = canary"] {
            write_private(&path, text.as_bytes()).expect("written");
            let refused = Context::load(&path).expect_err("refused");
            assert!(!format!("{refused} {refused:?}").contains("canary"), "{refused:?}");
        }
        assert!(matches!(Context::load(&dir.path().join("none")), Err(CliError::NoContext(_))));
    }

    #[test]
    fn the_default_path_follows_the_environment() {
        let check = |context: &'static str, config: &'static str, expected: &str| {
            let variable = move |name: &str| match name {
                "DEVFLEET_CONTEXT" => Some(context.to_owned()),
                "XDG_CONFIG_HOME" => Some(config.to_owned()),
                _ => Some("/home/a".to_owned()),
            };
            assert_eq!(default_path(variable), Path::new(expected));
        };
        check("/c.toml", "/x", "/c.toml");
        check("", "/x", "/x/devfleet/context.toml");
        check("", "", "/home/a/.config/devfleet/context.toml");
    }
}
