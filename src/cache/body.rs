//! Checks the body of a 200 as its operation requires. It keeps nothing of the body.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::unstorable::Unstorable;
use crate::catalogue::BodyCheck;

/// Reads the body once, to its end, so that a truncated body cannot pass. The whole body must be UTF-8 (RFC 8259 §8.1):
/// the parser does not check the strings that it skips.
pub fn check(body: &[u8], check: &BodyCheck) -> Result<(), Unstorable> {
    let field = match check {
        BodyCheck::None => return Ok(()),
        BodyCheck::Json => None,
        BodyCheck::Field(name) => Some(name.as_ref()),
    };
    let text = std::str::from_utf8(body).map_err(|_| Unstorable::NotJson)?;
    let mut json = serde_json::Deserializer::from_str(text);
    let value = Top { field }.deserialize(&mut json).and_then(|value| json.end().map(|()| value));
    match value.map_err(|_| Unstorable::NotJson)? {
        Value::Object { has_field, has_error } => match (has_field || field.is_none(), has_error) {
            (true, false) => Ok(()),
            _ => Err(Unstorable::NotProducts),
        },
        Value::Other if field.is_none() => Ok(()),
        Value::Other => Err(Unstorable::NotJson),
    }
}

/// Whether a body is a complete JSON object with an `error_code` that is not null.
pub(super) fn has_error_code(body: &[u8]) -> bool {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = Top { field: None }.deserialize(&mut json).and_then(|value| json.end().map(|()| value));
    matches!(value, Ok(Value::Object { has_error: true, .. }))
}

enum Value {
    /// Fields with the value null count as absent.
    Object {
        has_field: bool,
        has_error: bool,
    },
    Other,
}

/// Reads the outermost value and looks for `field` in it.
#[derive(Clone, Copy)]
struct Top<'f> {
    field: Option<&'f str>,
}

enum Field {
    Wanted,
    ErrorCode,
    Another,
}

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let (mut wanted, mut error) = (None, None);
        while let Some(field) = map.next_key_seed(Name(self.field))? {
            let seen = match field {
                Field::Wanted => &mut wanted,
                Field::ErrorCode => &mut error,
                Field::Another => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let is_there = map.next_value::<Option<IgnoredAny>>()?.is_some();
            // Clients disagree about which of two fields with the same name counts.
            if seen.replace(is_there).is_some() {
                return Err(A::Error::custom("a field is there twice"));
            }
        }
        Ok(Value::Object { has_field: wanted == Some(true), has_error: error == Some(true) })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Other)
    }
}

/// Reads the name of a field. Escaped characters are decoded before the name is compared.
struct Name<'f>(Option<&'f str>);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Field;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Field, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<Field, E> {
        Ok(match name {
            "error_code" => Field::ErrorCode,
            _ if self.0 == Some(name) => Field::Wanted,
            _ => Field::Another,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_JSON: Result<(), Unstorable> = Err(Unstorable::NotJson);
    const REJECTED: Result<(), Unstorable> = Err(Unstorable::NotProducts);

    fn zones() -> BodyCheck {
        BodyCheck::Field("zones".into())
    }

    #[test]
    fn a_body_is_checked_as_its_operation_requires() {
        // The results of the checks for a field and for JSON. The check `None` accepts all.
        for (body, field, json) in [
            (r#"{"zones":[]}"#, Ok(()), Ok(())),
            (r#" {"a":{"zones":null},"zones":{"error_code":1}} "#, Ok(()), Ok(())),
            (r#"{"\u007aones":0}"#, Ok(()), Ok(())),
            (r#"{"zones":[],"error_code":null}"#, Ok(()), Ok(())),
            (r#"{"zones":null}"#, REJECTED, Ok(())),
            (r#"{"products":[]}"#, REJECTED, Ok(())),
            ("{}", REJECTED, Ok(())),
            (r#"{"zones":[],"error_code":"WKS.1"}"#, REJECTED, REJECTED),
            (r#"{"error\u005fcode":"WKS.1","zones":[]}"#, REJECTED, REJECTED),
            (r#"{"zones":1,"zones":2}"#, NOT_JSON, Ok(())),
            (r#"{"zones":1,"error_code":null,"error_code":1}"#, NOT_JSON, NOT_JSON),
            ("[]", NOT_JSON, Ok(())),
            (r#"[{"zones":1}]"#, NOT_JSON, Ok(())),
            ("null", NOT_JSON, Ok(())),
            ("true", NOT_JSON, Ok(())),
            ("-1", NOT_JSON, Ok(())),
            ("1", NOT_JSON, Ok(())),
            ("1.5", NOT_JSON, Ok(())),
            (r#""zones""#, NOT_JSON, Ok(())),
            ("", NOT_JSON, NOT_JSON),
            (r#"{"zones":[]"#, NOT_JSON, NOT_JSON),
            (r#"{"zones":[]}x"#, NOT_JSON, NOT_JSON),
            ("<html>", NOT_JSON, NOT_JSON),
        ] {
            assert_eq!(check(body.as_bytes(), &zones()), field, "{body}");
            assert_eq!(check(body.as_bytes(), &BodyCheck::Json), json, "{body}");
            assert_eq!(check(body.as_bytes(), &BodyCheck::None), Ok(()), "{body}");
        }
    }

    #[test]
    fn a_truncated_body_is_never_json() {
        let whole = br#"{"total_count":2,"zones":[{"name":"a"},{"name":"\u00e9"}],"x":null}"#;
        for length in 0..whole.len() {
            assert_eq!(check(&whole[..length], &BodyCheck::Json), NOT_JSON, "{length}");
        }
        assert_eq!(check(whole, &zones()), Ok(()));
    }

    #[test]
    fn error_code_is_an_error_even_if_it_is_the_required_field() {
        let odd = BodyCheck::Field("error_code".into());
        assert_eq!(check(br#"{"error_code":"0"}"#, &odd), REJECTED);
    }
}
