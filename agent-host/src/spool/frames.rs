//! Records one after another in a file: each behind its length, as protobuf does it.

use devfleet_proto::v1::LogRecord;
use prost::Message as _;

/// The longest record that is believed, in bytes; the recorder's are at most some 33 KiB.
const LONGEST_RECORD: usize = 1024 * 1024;

/// How far bytes are records.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    /// Length of the whole records at the beginning.
    pub whole: usize,
    /// What follows is no beginning of a record.
    pub broken: bool,
}

/// Writes records as they stand in a spool.
pub fn encode(records: &[LogRecord]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(records.iter().map(|record| record.encoded_len() + 4).sum());
    for record in records {
        // Fails only for want of room, and a `Vec` grows.
        let written = record.encode_length_delimited(&mut bytes);
        debug_assert!(written.is_ok(), "a vector grows");
    }
    bytes
}

/// Hands every whole record to `see`, in order.
pub fn scan(bytes: &[u8], mut see: impl FnMut(LogRecord)) -> Scan {
    let mut whole = 0;
    while whole < bytes.len() {
        let mut rest = &bytes[whole..];
        let before = rest.len();
        let length = match prost::decode_length_delimiter(&mut rest) {
            Ok(length) if (1..=LONGEST_RECORD).contains(&length) => length,
            Err(_) if before < 10 => return Scan { whole, broken: false },
            _ => return Scan { whole, broken: true },
        };
        if rest.len() < length {
            return Scan { whole, broken: false };
        }
        let Ok(record) = LogRecord::decode(&rest[..length]) else { return Scan { whole, broken: true } };
        see(record);
        whole += before - rest.len() + length;
    }
    Scan { whole, broken: false }
}
