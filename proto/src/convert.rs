//! Wire to vocabulary and back.
//!
//! Out is always possible: `From<&Domain> for v1::X`. In is checked: `TryFrom<v1::X> for Domain` fails with a
//! `WireError` that names the field. Spans of time travel as whole seconds, rounded up, so that a limit never shrinks
//! to zero on its way.

use std::time::Duration;

use devfleet_shared::resources::Resources;

use crate::v1;

mod assignment;
mod attempt;
mod environment;

pub use assignment::assignment_to_wire;

/// A message that is well-formed on the wire but means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field `{field}` of a message is wrong: {problem}")]
pub struct WireError {
    /// The field, as the `.proto` file calls it: `Assignment.recipe`.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl WireError {
    /// Names a field and what is wrong with it.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or_else(|| WireError::new(field, "it is missing"))
}

fn parsed<T>(field: &'static str, text: &str) -> Result<T, WireError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| WireError::new(field, error.to_string()))
}

fn seconds(span: Duration) -> u64 {
    span.as_secs().saturating_add(u64::from(span.subsec_nanos() > 0))
}

fn absent_if_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

impl From<&Resources> for v1::Resources {
    fn from(amount: &Resources) -> Self {
        let Resources { cpu_millis, memory_bytes, disk_bytes, disk_inodes, slots } = *amount;
        Self { cpu_millis, memory_bytes, disk_bytes, disk_inodes, slots }
    }
}

impl From<v1::Resources> for Resources {
    fn from(amount: v1::Resources) -> Self {
        let v1::Resources { cpu_millis, memory_bytes, disk_bytes, disk_inodes, slots } = amount;
        Self { cpu_millis, memory_bytes, disk_bytes, disk_inodes, slots }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_come_back_as_they_went() {
        let amount = Resources { cpu_millis: 1, memory_bytes: 2, disk_bytes: 3, disk_inodes: 4, slots: 5 };
        assert_eq!(Resources::from(v1::Resources::from(&amount)), amount);
    }

    #[test]
    fn a_part_of_a_second_counts_as_a_whole_one() {
        assert_eq!(seconds(Duration::ZERO), 0);
        assert_eq!(seconds(Duration::from_millis(1)), 1);
        assert_eq!(seconds(Duration::from_secs(7)), 7);
    }
}
