//! The output that Docker keeps of a container, followed until the container ends.
//!
//! Following can break (the daemon restarts) or get stuck, so it is watched: a stream that ends too early is opened again,
//! and one that is silent too, less and less often; one that goes on after the container ended is closed and the rest is
//! read once more.

use std::pin::Pin;
use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptions;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};

use super::{DEADLINE, DockerEngine, containers, errors};
use crate::engine::{ContainerState, EngineError, OutputFrame, OutputStream};

/// How long a stream may be silent before we look whether its container has ended.
const SILENCE: Duration = Duration::from_secs(2);
/// A silent stream of a container that runs is opened again after one such silence, two more, four more, and so on up to
/// this many: Docker reads the whole log for it.
const LOOKS: u32 = 32;
/// The pause before a stream that ended too early is opened again.
const PAUSE: Duration = Duration::from_millis(200);
/// The size of the pieces into which Docker cuts long lines, in bytes.
const PIECE: usize = 16 * 1024;

type Frames = Pin<Box<dyn Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>;

impl DockerEngine {
    pub(super) async fn kept_output(&self, name: &str, since: Option<&str>) -> Result<OutputStream, EngineError> {
        let client = self.client().await?.clone();
        if self.inspect_container(name).await?.is_none() {
            let action = format!("read the output of {name}");
            return Err(EngineError::NotFound { action, detail: "it does not exist".into() });
        }
        // A second engine on the same socket: the stream outlives this borrow.
        let engine = DockerEngine { address: self.address.clone(), client: client.clone().into() };
        let reader = Reader {
            engine,
            client,
            name: name.to_owned(),
            position: Position { from: since.map(moment).transpose()?, seen: 0 },
            frames: None,
            silence: Silence::default(),
            ended: false,
            done: false,
        };
        Ok(stream::unfold(reader, |mut reader| async move { Some((reader.next().await?, reader)) }).boxed())
    }
}

/// Where reading stands: the last stamp, and how many frames with that stamp were passed on. Docker gives all pieces
/// of a long line the same stamp.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Position {
    from: Option<jiff::Timestamp>,
    seen: usize,
}

/// Skips what was passed on before a stream was opened again.
struct Skip {
    position: Position,
    met: usize,
}

impl Skip {
    fn passes(&mut self, stamp: jiff::Timestamp) -> bool {
        match self.position.from {
            Some(from) if stamp < from => false,
            Some(from) if stamp == from && self.met < self.position.seen => {
                self.met += 1;
                false
            }
            _ => true,
        }
    }
}

/// For how long a stream has been silent.
#[derive(Debug, Default)]
struct Silence {
    /// In looks, since the stream was opened.
    looks: u32,
    /// How often a stream was opened again since the last frame.
    reopened: u32,
}

impl Silence {
    /// Counts a look; says whether the stream is to be opened again.
    fn is_suspect(&mut self) -> bool {
        self.looks += 1;
        let suspect = self.looks >= LOOKS.min(1 << self.reopened.min(31));
        if suspect {
            (self.looks, self.reopened) = (0, self.reopened + 1);
        }
        suspect
    }
}

struct Reader {
    engine: DockerEngine,
    client: Docker,
    name: String,
    position: Position,
    frames: Option<(Frames, Skip)>,
    silence: Silence,
    /// The container has ended, and what is open is the last read.
    ended: bool,
    done: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<OutputFrame, EngineError>> {
        if self.done {
            return None;
        }
        match self.advance().await {
            Ok(Some(frame)) => Some(Ok(frame)),
            Ok(None) => {
                self.done = true;
                None
            }
            Err(error) => {
                self.done = true;
                Some(Err(error))
            }
        }
    }

    async fn advance(&mut self) -> Result<Option<OutputFrame>, EngineError> {
        loop {
            if self.frames.is_none() {
                self.frames = Some((self.open(), Skip { position: self.position, met: 0 }));
            }
            let Some((frames, skip)) = &mut self.frames else { continue };
            let limit = if self.ended { DEADLINE } else { SILENCE };
            match tokio::time::timeout(limit, frames.next()).await {
                Ok(Some(Ok(item))) => {
                    let (stamp, frame) = stamped(item)?;
                    if skip.passes(stamp) {
                        let seen = if self.position.from == Some(stamp) { self.position.seen + 1 } else { 1 };
                        self.position = Position { from: Some(stamp), seen };
                        self.silence = Silence::default();
                        return Ok(Some(frame));
                    }
                }
                Ok(Some(Err(error))) => {
                    let action = format!("read the output of {}", self.name);
                    return Err(errors::translate(error, action, &self.engine.address));
                }
                Ok(None) if self.ended => return Ok(None),
                Err(_) if self.ended => {
                    let action = format!("read the output of {}", self.name);
                    return Err(EngineError::Deadline { action, after: DEADLINE });
                }
                Ok(None) => self.look(true).await?,
                Err(_) => self.look(false).await?,
            }
        }
    }

    /// Looks how the container is; once it has ended, what is left is read without following.
    async fn look(&mut self, closed: bool) -> Result<(), EngineError> {
        match self.engine.inspect_container(&self.name).await? {
            Some(ContainerState::Exited(_)) | None => {
                self.ended = true;
                self.frames = None;
            }
            Some(_) if closed => {
                tokio::time::sleep(PAUSE).await;
                self.frames = None;
            }
            Some(_) if self.silence.is_suspect() => self.frames = None,
            Some(_) => {}
        }
        Ok(())
    }

    fn open(&self) -> Frames {
        let since = self.position.from.map_or(0, |from| i32::try_from(from.as_second()).unwrap_or(0));
        let options = LogsOptions {
            follow: !self.ended,
            stdout: true,
            stderr: true,
            timestamps: true,
            since,
            tail: "all".into(),
            ..LogsOptions::default()
        };
        Box::pin(self.client.logs(&self.name, Some(options)))
    }
}

fn moment(stamp: &str) -> Result<jiff::Timestamp, EngineError> {
    stamp.parse().map_err(|_| bad_stamp(stamp))
}

fn bad_stamp(stamp: &str) -> EngineError {
    EngineError::Other { action: "read a time stamp of output".into(), status: 0, detail: format!("{stamp:?} is none") }
}

/// Takes Docker's time stamp off a piece of output.
fn stamped(item: LogOutput) -> Result<(jiff::Timestamp, OutputFrame), EngineError> {
    let mut frame = containers::frame(item, None);
    let head = &frame.data[..frame.data.len().min(64)];
    let length = head.iter().position(|byte| *byte == b' ').ok_or_else(|| bad_stamp(&String::from_utf8_lossy(head)))?;
    let stamp = String::from_utf8_lossy(&head[..length]).into_owned();
    let moment = moment(&stamp)?;
    frame.data = whole_line(frame.data.slice(length + 1..));
    frame.stamp = Some(stamp);
    Ok((moment, frame))
}

/// Gives the last piece of a long line its line end back, which Docker 20.10 loses. Docker keeps output by lines, and
/// cuts longer ones into pieces of this size: so a shorter piece always ends its line.
fn whole_line(data: Bytes) -> Bytes {
    if data.len() >= PIECE || data.ends_with(b"\n") {
        return data;
    }
    [&data[..], b"\n"].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &'static str) -> LogOutput {
        LogOutput::StdErr { message: text.into() }
    }

    #[test]
    fn the_stamp_comes_off_and_the_bytes_stay() {
        let (_, frame) = stamped(line("2026-01-02T03:04:05.000000006Z  two  blanks\n")).expect("a stamp");
        assert_eq!(frame.stamp.as_deref(), Some("2026-01-02T03:04:05.000000006Z"));
        assert_eq!(&frame.data[..], b" two  blanks\n");
        assert!(frame.is_error);
        let (_, empty) = stamped(line("2026-01-02T03:04:05.000000006+02:00 ")).expect("a stamp");
        assert_eq!(&empty.data[..], b"\n", "the end of a line of exactly 16 KiB");
        let full = Bytes::from(vec![b'x'; PIECE]);
        assert_eq!(whole_line(full.clone()), full, "the line goes on");
        assert!(stamped(line("no stamp")).is_err() && stamped(line("")).is_err());
    }

    #[test]
    fn a_silent_stream_is_opened_again_less_and_less_often() {
        let mut silence = Silence::default();
        let after = |silence: &mut Silence| (1..).find(|_| silence.is_suspect()).expect("some time");
        let looks: Vec<u32> = (0..8).map(|_| after(&mut silence)).collect();
        assert_eq!(looks, [1, 2, 4, 8, 16, 32, 32, 32]);
    }

    #[test]
    fn a_stream_that_is_opened_again_goes_on_where_it_was() {
        let at = |nanos| jiff::Timestamp::from_nanosecond(nanos).expect("a time");
        let mut skip = Skip { position: Position { from: Some(at(5)), seen: 2 }, met: 0 };
        let passed: Vec<bool> = [3, 5, 5, 5, 6].map(|nanos| skip.passes(at(nanos))).to_vec();
        assert_eq!(passed, [false, false, false, true, true]);
        let mut inclusive = Skip { position: Position { from: Some(at(5)), seen: 0 }, met: 0 };
        assert!(inclusive.passes(at(5)) && !inclusive.passes(at(4)));
    }
}
