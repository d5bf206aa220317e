//! The fields of a text line in logfmt: `name=value`, separated by spaces. Values that could be read as something else
//! are quoted, so that no client's text can add a field or a line.

use std::error::Error;
use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// The name of the field with an event's message, which is written before the other fields.
const MESSAGE: &str = "message";

pub(super) struct Logfmt;

impl<'w> FormatFields<'w> for Logfmt {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Visitor { writer, is_first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct Visitor<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl Visitor<'_> {
    fn write(&mut self, field: &Field, value: &str, is_quoted: bool) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        let mut is_quoted = is_quoted;
        if field.name() == MESSAGE {
            if !value.contains(['=', '"', '\'']) {
                return escape(&mut self.writer, value, false);
            }
            // Without quotes it would be read as fields.
            is_quoted = true;
        }
        match self.writer.has_ansi_escapes() {
            // Italic and dimmed, as in the default format of the layer.
            true => write!(self.writer, "\x1b[3m{}\x1b[0m\x1b[2m=\x1b[0m", field.name())?,
            false => write!(self.writer, "{}=", field.name())?,
        }
        if is_quoted { quote(&mut self.writer, value) } else { self.writer.write_str(value) }
    }

    fn note(&mut self, result: fmt::Result) {
        self.result = self.result.and(result);
    }
}

impl Visit for Visitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        let result = self.write(field, value, true);
        self.note(result);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let value = format!("{value:?}");
        let is_quoted = needs_quotes(&value);
        let result = self.write(field, &value, is_quoted);
        self.note(result);
    }
}

/// Whether the value would be read differently without quotes.
fn needs_quotes(value: &str) -> bool {
    let is_special = |c: char| c <= ' ' || matches!(c, '"' | '=' | '\\' | '\u{fffd}') || c.is_control();
    value.is_empty() || value.contains(is_special)
}

/// Writes a value in quotes, as in JSON.
fn quote(text: &mut impl Write, value: &str) -> fmt::Result {
    text.write_char('"')?;
    escape(text, value, true)?;
    text.write_char('"')
}

/// Escapes control characters, so that the value stays on its line and a terminal does not interpret it.
fn escape(text: &mut impl Write, value: &str, is_quoted: bool) -> fmt::Result {
    for c in value.chars() {
        match c {
            '"' | '\\' if is_quoted => write!(text, "\\{c}")?,
            '\n' => text.write_str("\\n")?,
            '\r' => text.write_str("\\r")?,
            '\t' => text.write_str("\\t")?,
            c if c.is_control() => write!(text, "\\u{:04x}", u32::from(c))?,
            c => text.write_char(c)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use proptest::prelude::*;
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::sync::Mutex;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Written {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    fn line(log: impl FnOnce()) -> String {
        let written = Written::default();
        let lines = tracing_subscriber::fmt().with_writer(written.clone()).with_ansi(false).without_time();
        tracing::subscriber::with_default(lines.fmt_fields(Logfmt).finish(), log);
        String::from_utf8(written.0.lock().clone()).unwrap()
    }

    /// Reads a line as logfmt. A word without `=` is a name without a value.
    fn parse(line: &str) -> Option<Vec<(String, Option<String>)>> {
        let (mut fields, mut rest) = (Vec::new(), line.trim_end_matches('\n').chars().peekable());
        loop {
            while rest.next_if_eq(&' ').is_some() {}
            let mut name = String::new();
            while let Some(c) = rest.next_if(|c| !matches!(c, ' ' | '=')) {
                name.push(c);
            }
            if name.is_empty() {
                return rest.next().is_none().then_some(fields);
            }
            if rest.next_if_eq(&'=').is_none() {
                fields.push((name, None));
                continue;
            }
            let mut value = String::new();
            if rest.next_if_eq(&'"').is_none() {
                while let Some(c) = rest.next_if(|c| *c != ' ') {
                    if c == '"' || c == '=' || c.is_control() {
                        return None;
                    }
                    value.push(c);
                }
            } else {
                loop {
                    match rest.next()? {
                        '"' => break,
                        '\\' => value.push(match rest.next()? {
                            'n' => '\n',
                            'r' => '\r',
                            't' => '\t',
                            'u' => {
                                let code: String = (0..4).map_while(|_| rest.next()).collect();
                                char::from_u32(u32::from_str_radix(&code, 16).ok()?)?
                            }
                            c @ ('"' | '\\') => c,
                            _ => return None,
                        }),
                        c if c.is_control() => return None,
                        c => value.push(c),
                    }
                }
                if !matches!(rest.peek(), None | Some(' ')) {
                    return None;
                }
            }
            fields.push((name, Some(value)));
        }
    }

    fn texts() -> impl Strategy<Value = String> {
        prop_oneof![any::<String>(), "[a-c =\"\\\\\n\t\r\u{1b}\u{7f}\u{85}]{0,12}"]
    }

    proptest! {
        #[test]
        fn a_reader_of_logfmt_reads_every_value(one in texts(), other in texts(), number in any::<i64>()) {
            let line = line(|| tracing::info!(first = one, shown = %other, number, is_it = true, "words"));
            prop_assert_eq!(line.lines().count(), 1);
            let fields = parse(&line).ok_or_else(|| TestCaseError::fail(line.clone()))?;
            let value = |name: &str| fields.iter().filter(|(it, _)| it == name).map(|(_, value)| value.clone()).collect::<Vec<_>>();
            prop_assert_eq!(value("first"), [Some(one)]);
            prop_assert_eq!(value("shown"), [Some(other)]);
            prop_assert_eq!(value("number"), [Some(number.to_string())]);
            prop_assert_eq!(value("is_it"), [Some("true".to_owned())]);
            prop_assert_eq!(fields.iter().filter(|(_, value)| value.is_some()).count(), 4);
        }

        #[test]
        fn a_message_stays_on_its_line(words in texts()) {
            let line = line(|| tracing::info!(after = 1, "{words}"));
            let line = line.strip_suffix('\n').unwrap();
            prop_assert!(!line.contains(char::is_control) && line.ends_with(" after=1"), "{line:?}");
            let fields = parse(line).ok_or_else(|| TestCaseError::fail(line.to_owned()))?;
            let others = fields.iter().filter(|(name, value)| value.is_some() && name != MESSAGE).count();
            prop_assert_eq!(others, 1, "{}", line);
        }
    }

    #[test]
    fn plain_values_have_no_quotes_and_missing_fields_are_left_out() {
        let line = line(|| {
            let (some, none) = (Some("b c"), None::<&str>);
            tracing::info!(address = %"127.0.0.1", ms = 1.5, none, some, name = "a", "message");
        });
        assert!(line.ends_with("message address=127.0.0.1 ms=1.5 some=\"b c\" name=\"a\"\n"), "{line}");
    }
}
