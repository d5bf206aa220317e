//! The questions of `init`, on a terminal. Without one, an error says what is missing.

use std::cell::RefCell;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, absolute};

use clap::ValueEnum;

use super::clients::Client;
use super::{Credential, EnvironmentKey, Secret, warnings};
use crate::config::names::{AccessKeyId, Region};

pub(super) struct Answers {
    /// `None` if the settings name the upstreams.
    pub(super) region: Option<String>,
    pub(super) credential: Credential,
    pub(super) key: Option<EnvironmentKey>,
    pub(super) client: Client,
}

/// Asks for what is not given.
///
/// # Errors
/// If something is missing and there is no terminal, or no answer.
pub(super) fn missing(
    has_upstream: bool,
    credential: Option<Credential>,
    key: Option<EnvironmentKey>,
    client: Option<Client>,
) -> Result<Answers, String> {
    if !io::stdin().is_terminal() {
        let is_without_key = credential == Some(Credential::AccessKey) && key.is_none();
        let needed = [
            (!has_upstream, "--region NAME"),
            (credential.is_none(), "--credential token or access-key"),
            (is_without_key, "WORKSPACE_GATEWAY_ACCESS_KEY_ID and WORKSPACE_GATEWAY_ACCESS_KEY_SECRET_FILE"),
            (client.is_none(), "--client NAME"),
        ];
        let needed: Vec<_> = needed.into_iter().filter(|(is_needed, _)| *is_needed).map(|(_, name)| name).collect();
        if !needed.is_empty() {
            return Err(format!(
                "standard input is not a terminal, so nothing can be asked: expected {}",
                needed.join("; ")
            ));
        }
    }
    let mut questions = Questions { input: io::stdin().lock(), output: io::stdout() };
    let region = if has_upstream { None } else { Some(questions.region()?) };
    let credential = match credential {
        Some(credential) => credential,
        None => questions.choice("What do clients authenticate with", Credential::Token)?,
    };
    let key = match key {
        None if credential == Credential::AccessKey => Some(questions.key()?),
        key => key,
    };
    let client = match client {
        Some(client) => client,
        None => questions.choice("Client", Client::Curl)?,
    };
    Ok(Answers { region, credential, key, client })
}

struct Questions<I, O> {
    input: I,
    output: O,
}

impl<I: BufRead, O: Write> Questions<I, O> {
    /// A region that is not known must be entered twice: it may be a new one.
    fn region(&mut self) -> Result<String, String> {
        let before = RefCell::default();
        self.ask("Region, such as cn-north-4: ", |answer| {
            let region = answer.parse::<Region>()?.to_string();
            match warnings::unknown_region_name(&region) {
                Some(unknown) if before.replace(region.clone()) != region => {
                    let known = warnings::known_regions();
                    Err(format!("{unknown}: expected one of {known}. If it is a new region, enter it again"))
                }
                _ => Ok(region),
            }
        })
    }

    /// The first value is taken if the answer is empty.
    fn choice<T: ValueEnum + PartialEq>(&mut self, what: &str, default: T) -> Result<T, String> {
        let name = |value: &T| value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let names = T::value_variants().iter().map(name).collect::<Vec<_>>().join(", ");
        let question = format!("{what} ({names}) [{}]: ", name(&default));
        self.ask(&question, |answer| match answer {
            "" => Ok(default.clone()),
            answer => T::from_str(answer, true).map_err(|_| format!("expected one of {names}")),
        })
    }

    fn key(&mut self) -> Result<EnvironmentKey, String> {
        let id = self.ask("Access key id: ", |answer| answer.parse::<AccessKeyId>().map(|id| id.to_string()))?;
        let secret = self.ask("File that has the secret access key and nothing else: ", |answer| {
            let path = Path::new(answer);
            if !path.is_file() {
                return Err("there is no such file".to_owned());
            }
            absolute(path).map_err(|error| error.to_string())
        })?;
        Ok(EnvironmentKey { id, secret: Secret::File(secret), origin: "", secret_origin: "" })
    }

    /// Repeats the question until the answer is accepted.
    ///
    /// # Errors
    /// If there is no further answer.
    fn ask<T>(&mut self, question: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<T, String> {
        loop {
            let asked = self.output.write_all(question.as_bytes()).and_then(|()| self.output.flush());
            let mut answer = String::new();
            match asked.and_then(|()| self.input.read_line(&mut answer)) {
                Ok(0) => return Err("stopped: a question was not answered".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(format!("cannot ask: {error}")),
            }
            match read(answer.trim()) {
                Ok(answer) => return Ok(answer),
                Err(error) => drop(writeln!(self.output, "{error}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_that_is_not_known_is_accepted_if_it_is_entered_twice() {
        for (answers, expected, errors) in [
            ("cn-nroth-4\ncn-north-4\n", "cn-north-4", 1),
            ("xx-new-1\nxx-new-1\n", "xx-new-1", 1),
            ("xx-new-1\nxx-new-2\nxx-new-2\n", "xx-new-2", 2),
        ] {
            let mut questions = Questions { input: answers.as_bytes(), output: Vec::new() };
            assert_eq!(questions.region().as_deref(), Ok(expected));
            let printed = String::from_utf8(questions.output).unwrap();
            let error = "is not a known region of Workspace; the nearest known one is \"";
            assert_eq!(printed.matches(error).count(), errors, "{printed}");
        }
    }

    #[test]
    fn a_question_is_repeated_until_the_answer_is_accepted() {
        let mut questions =
            Questions { input: &b"\nno region!\ncn-north-4\n\nnothing\nJAVA\n"[..], output: Vec::new() };
        assert_eq!(questions.region(), Ok("cn-north-4".to_owned()));
        assert_eq!(questions.choice("Credential", Credential::Token), Ok(Credential::Token));
        assert_eq!(questions.choice("Client", Client::Curl), Ok(Client::Java));
        assert!(questions.region().unwrap_err().contains("not answered"));
        let printed = String::from_utf8(questions.output).unwrap();
        assert_eq!(printed.matches("Region, such as").count(), 4, "{printed}");
        assert!(printed.contains("Credential (token, access-key) [token]: "), "{printed}");
        assert!(printed.contains("expected one of curl, "), "{printed}");
    }
}
