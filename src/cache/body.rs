//! Whether the body of a 200 is an answer: what each operation asks of it.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::unstorable::Unstorable;
use crate::catalogue::BodyCheck;

/// Reads a body once from end to end, so that a truncated one can't pass, and keeps nothing. JSON is UTF-8 (RFC 8259 §8.1);
/// the parser alone would not look into what it skips.
pub(super) fn check(body: &[u8], check: &BodyCheck) -> Result<(), Unstorable> {
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

/// Whether a body is a whole JSON object with an `error_code`.
pub(super) fn has_error_code(body: &[u8]) -> bool {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = Top { field: None }.deserialize(&mut json).and_then(|value| json.end().map(|()| value));
    matches!(value, Ok(Value::Object { has_error: true, .. }))
}

/// What matters of a JSON text.
enum Value {
    /// An object; fields that are null count as absent.
    Object { has_field: bool, has_error: bool },
    /// Anything else.
    Other,
}

/// Reads it, looking for a field.
#[derive(Clone, Copy)]
struct Top<'f> {
    field: Option<&'f str>,
}

/// Which field of an object it is.
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
            let place = match field {
                Field::Wanted => &mut wanted,
                Field::ErrorCode => &mut error,
                Field::Another => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let is_there = map.next_value::<Option<IgnoredAny>>()?.is_some();
            // Twice the same name: clients don't agree on which counts.
            if place.replace(is_there).is_some() {
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

/// The name of a field, as it is once unescaped.
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
    const NOT_IT: Result<(), Unstorable> = Err(Unstorable::NotProducts);

    fn zones() -> BodyCheck {
        BodyCheck::Field("zones".into())
    }

    #[test]
    fn each_operation_asks_its_own_of_a_body() {
        // By the field, by JSON, by nothing.
        for (body, field, json) in [
            (r#"{"zones":[]}"#, Ok(()), Ok(())),
            (r#" {"a":{"zones":null},"zones":{"error_code":1}} "#, Ok(()), Ok(())),
            (r#"{"\u007aones":0}"#, Ok(()), Ok(())),
            (r#"{"zones":[],"error_code":null}"#, Ok(()), Ok(())),
            (r#"{"zones":null}"#, NOT_IT, Ok(())),
            (r#"{"products":[]}"#, NOT_IT, Ok(())),
            ("{}", NOT_IT, Ok(())),
            (r#"{"zones":[],"error_code":"WKS.1"}"#, NOT_IT, NOT_IT),
            (r#"{"error\u005fcode":"WKS.1","zones":[]}"#, NOT_IT, NOT_IT),
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
    fn a_body_that_was_cut_is_never_json() {
        let whole = br#"{"total_count":2,"zones":[{"name":"a"},{"name":"\u00e9"}],"x":null}"#;
        for length in 0..whole.len() {
            assert_eq!(check(&whole[..length], &BodyCheck::Json), NOT_JSON, "{length}");
        }
        assert_eq!(check(whole, &zones()), Ok(()));
    }

    #[test]
    fn error_code_may_be_the_field_that_is_asked_for_and_is_an_error_all_the_same() {
        let odd = BodyCheck::Field("error_code".into());
        assert_eq!(check(br#"{"error_code":"0"}"#, &odd), NOT_IT);
    }
}
