//! Text that a command reads: from the command line, a file, or standard input.

use std::io::Read as _;
use std::path::Path;

use super::failure::CliError;

/// The largest text that is read, in bytes; the controller's own limits are lower.
const LARGEST_BYTES: u64 = 4 << 20;

/// Reads a file, or standard input for `-`.
pub(super) fn read(path: &Path) -> Result<String, CliError> {
    let failed = |source| CliError::File { action: "read", path: path.to_owned(), source };
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(LARGEST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(LARGEST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    if bytes.len() as u64 > LARGEST_BYTES {
        return Err(CliError::Usage(format!("{} is larger than 4 MiB: give a smaller text", path.display())));
    }
    String::from_utf8(bytes).map_err(|_| CliError::Usage(format!("{} is not UTF-8: give a text file", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_absent_or_no_text_are_refused_by_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("task.md");
        let absent = read(&path).expect_err("absent").to_string();
        assert!(absent.contains("cannot read") && absent.contains("task.md"), "{absent}");
        std::fs::write(&path, [0xff, 0xfe]).expect("written");
        assert!(read(&path).expect_err("no text").to_string().contains("not UTF-8"));
        std::fs::write(&path, "fine").expect("written");
        assert_eq!(read(&path).expect("read"), "fine");
    }
}
