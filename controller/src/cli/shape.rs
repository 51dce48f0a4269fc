//! What `--output json` and `--output yaml` print: values whose fields keep the order in which we write them.
//!
//! The shapes are a promise to scripts, so they are spelled out here and not derived from generated code. Keys are the
//! wire's field names; moments lose the ending `_unix_ms` and read as RFC 3339; what is not set is null.

use devfleet_shared::clock::Timestamp;
use serde::ser::{Serialize, SerializeMap as _, SerializeSeq as _, Serializer};

pub mod derivation;
pub mod fleet;
pub mod jobs;
pub mod yaml;

/// A value to print.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Not set.
    Null,
    /// True or false.
    Bool(bool),
    /// A count.
    Number(u64),
    /// A whole number that may be negative.
    Signed(i64),
    /// A number with a fraction.
    Ratio(f64),
    /// A text.
    Text(String),
    /// Values in order.
    List(Vec<Shape>),
    /// Named values in order.
    Record(Vec<(String, Shape)>),
}

/// Makes a record.
pub fn record<const N: usize>(fields: [(&str, Shape); N]) -> Shape {
    Shape::Record(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Makes a list by shaping every item.
pub fn list<T>(items: &[T], shape: impl Fn(&T) -> Shape) -> Shape {
    Shape::List(items.iter().map(shape).collect())
}

/// Shapes a message that may be absent.
pub fn optional<T>(item: &Option<T>, shape: impl Fn(&T) -> Shape) -> Shape {
    item.as_ref().map_or(Shape::Null, shape)
}

/// Makes a moment; 0 is null.
pub fn moment(unix_ms: u64) -> Shape {
    if unix_ms == 0 { Shape::Null } else { Shape::Text(Timestamp(unix_ms).to_string()) }
}

/// Makes a text; an empty one is null.
pub fn text(text: &str) -> Shape {
    if text.is_empty() { Shape::Null } else { Shape::Text(text.to_owned()) }
}

/// Makes a record of texts, ordered by name.
pub fn texts(variables: &std::collections::HashMap<String, String>) -> Shape {
    let mut fields: Vec<_> =
        variables.iter().map(|(name, value)| (name.clone(), Shape::from(value.as_str()))).collect();
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    Shape::Record(fields)
}

macro_rules! shape_from {
    ($($type:ty => $make:expr),* $(,)?) => {
        $(impl From<$type> for Shape {
            fn from(value: $type) -> Shape {
                $make(value)
            }
        })*
    };
}

shape_from!(
    bool => Shape::Bool,
    u64 => Shape::Number,
    u32 => |value| Shape::Number(u64::from(value)),
    i64 => Shape::Signed,
    f64 => Shape::Ratio,
    &str => |value: &str| Shape::Text(value.to_owned()),
    String => Shape::Text,
    &String => |value: &String| Shape::Text(value.clone()),
    &Vec<String> => |values: &Vec<String>| Shape::List(values.iter().map(Shape::from).collect()),
);

impl Shape {
    /// Writes JSON over several lines.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Writes JSON on one line, for streams of values.
    pub fn to_json_line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Serialize for Shape {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Shape::Null => serializer.serialize_unit(),
            Shape::Bool(value) => serializer.serialize_bool(*value),
            Shape::Number(value) => serializer.serialize_u64(*value),
            Shape::Signed(value) => serializer.serialize_i64(*value),
            Shape::Ratio(value) => serializer.serialize_f64(*value),
            Shape::Text(value) => serializer.serialize_str(value),
            Shape::List(values) => {
                let mut list = serializer.serialize_seq(Some(values.len()))?;
                for value in values {
                    list.serialize_element(value)?;
                }
                list.end()
            }
            Shape::Record(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (name, value) in fields {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_order_and_absent_values_are_null() {
        let shape = record([("z", moment(0)), ("a", moment(1_700_000_000_000)), ("m", text(""))]);
        assert_eq!(shape.to_json_line(), r#"{"z":null,"a":"2023-11-14T22:13:20Z","m":null}"#);
    }
}
