//! The build context: a tar stream of the Dockerfile and of the files that it copies, read as they are sent.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

/// Tar files come in blocks of this many bytes.
const BLOCK: u64 = 512;

/// Streams the context. Each file is sent with the length it had when it was opened.
pub(super) fn context(
    dockerfile: &str,
    files: Vec<(String, PathBuf)>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let dockerfile = Bytes::copy_from_slice(dockerfile.as_bytes());
    let first = entry_head("Dockerfile", dockerfile.len() as u64, 0o644).map(|head| {
        let padding = padding(dockerfile.len() as u64);
        stream::iter([Ok(head), Ok(dockerfile), Ok(padding)])
    });
    let first = stream::iter([first]).try_flatten();
    let files = stream::iter(files).then(|(name, path)| async move { file_entry(&name, &path).await }).try_flatten();
    // Two empty blocks end a tar file.
    let end = stream::iter([Ok(Bytes::from(vec![0; 2 * BLOCK as usize]))]);
    first.chain(files).chain(end)
}

async fn file_entry(name: &str, path: &Path) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>> {
    let file = tokio::fs::File::open(path).await?;
    let length = file.metadata().await?.len();
    let head = entry_head(name, length, 0o755)?;
    let content = ReaderStream::with_capacity(file.take(length), 256 * 1024);
    Ok(stream::iter([Ok(head)]).chain(content).chain(stream::iter([Ok(padding(length))])))
}

fn entry_head(name: &str, length: u64, mode: u32) -> io::Result<Bytes> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_size(length);
    header.set_mode(mode);
    // The same input makes the same layer: no time, no user.
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    Ok(Bytes::copy_from_slice(header.as_bytes()))
}

fn padding(length: u64) -> Bytes {
    Bytes::from(vec![0; (length.next_multiple_of(BLOCK) - length) as usize])
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[tokio::test]
    async fn the_context_is_a_tar_file_of_everything() {
        let folder = tempfile::tempdir().expect("a folder");
        let big = vec![7u8; 1_000_003];
        std::fs::write(folder.path().join("big"), &big).expect("a file");
        std::fs::write(folder.path().join("empty"), b"").expect("a file");
        let files = ["big", "empty"].map(|name| (name.to_owned(), folder.path().join(name)));
        let chunks: Vec<Bytes> = context("FROM x\n", files.to_vec()).try_collect().await.expect("a context");
        let bytes = chunks.concat();
        assert_eq!(bytes.len() % 512, 0);
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut found = Vec::new();
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            found.push((entry.path().expect("a path").display().to_string(), content));
        }
        let wanted =
            [("Dockerfile".to_owned(), b"FROM x\n".to_vec()), ("big".into(), big), ("empty".into(), Vec::new())];
        assert_eq!(found, wanted);
    }

    #[tokio::test]
    async fn a_missing_file_fails_the_context() {
        let files = vec![("gone".to_owned(), PathBuf::from("/nowhere/gone"))];
        let outcome: io::Result<Vec<Bytes>> = context("FROM x\n", files).try_collect().await;
        assert_eq!(outcome.expect_err("no such file").kind(), io::ErrorKind::NotFound);
    }
}
