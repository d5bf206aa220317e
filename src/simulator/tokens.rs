//! The tokens that were issued, and their states.

use std::collections::HashMap;
use std::time::Instant;

use http::HeaderMap;

use super::errors::{self, ErrorReply};
use crate::request::caller::X_AUTH_TOKEN;

/// The approximate length of an ordinary account's token, in characters.
pub(super) const USUAL_LENGTH: usize = 4_800;

/// 64 characters, so that a random byte selects each with the same probability.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-+";

/// The state of a token or an access key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum CredentialState {
    Valid,
    Expired,
    Revoked,
    Denied,
}

/// The owner of a credential.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bearer {
    pub(super) project_id: String,
    /// Since when lists lack their first match.
    pub(super) restricted_since: Option<Instant>,
}

impl Bearer {
    pub(super) fn of(project_id: &str) -> Self {
        Self { project_id: project_id.to_owned(), restricted_since: None }
    }

    pub(super) fn restrict_view(&mut self, now: Instant) {
        self.restricted_since.get_or_insert(now);
    }

    /// Whether lists of this moment lack their first match.
    pub(super) fn is_restricted(&self, at: Instant) -> bool {
        self.restricted_since.is_some_and(|since| since <= at)
    }
}

struct Token {
    bearer: Bearer,
    state: CredentialState,
}

pub(super) struct Tokens {
    seed: [u8; 32],
    issued: u64,
    known: HashMap<String, Token>,
}

impl Tokens {
    /// `seed` is random, so that tokens of one simulator are not valid in another.
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, issued: 0, known: HashMap::new() }
    }

    pub(super) fn issue(&mut self, project_id: &str, length: usize) -> String {
        self.issued += 1;
        let mut bytes = vec![0; length];
        blake3::Hasher::new_keyed(&self.seed).update(&self.issued.to_le_bytes()).finalize_xof().fill(&mut bytes);
        let text: String = bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 64)])).collect();
        self.add(project_id, &text);
        text
    }

    pub(super) fn add(&mut self, project_id: &str, text: &str) {
        let token = Token { bearer: Bearer::of(project_id), state: CredentialState::Valid };
        self.known.insert(text.to_owned(), token);
    }

    /// Changes nothing if the token was not issued.
    pub(super) fn set_state(&mut self, token: &str, state: CredentialState) {
        if let Some(token) = self.known.get_mut(token) {
            token.state = state;
        }
    }

    pub(super) fn restrict_view(&mut self, token: &str, now: Instant) {
        if let Some(token) = self.known.get_mut(token) {
            token.bearer.restrict_view(now);
        }
    }

    /// The owner of a token, whatever its state.
    pub(super) fn known(&self, token: &str) -> Option<Bearer> {
        self.known.get(token).map(|token| token.bearer.clone())
    }

    /// The owner of a request's token, if the token is valid.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<Bearer, ErrorReply> {
        let text = headers.get(X_AUTH_TOKEN).filter(|value| !value.is_empty()).ok_or(errors::NO_TOKEN)?;
        let known = text.to_str().ok().and_then(|text| self.known.get(text)).ok_or(errors::UNKNOWN_TOKEN)?;
        match known.state {
            CredentialState::Valid => Ok(known.bearer.clone()),
            CredentialState::Expired => Err(errors::EXPIRED_TOKEN),
            CredentialState::Revoked => Err(errors::REVOKED_TOKEN),
            CredentialState::Denied => Err(errors::DENIED),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn with_token(token: &str) -> HeaderMap {
        HeaderMap::from_iter([(X_AUTH_TOKEN, HeaderValue::from_str(token).unwrap())])
    }

    #[test]
    fn issued_tokens_are_long_unique_and_valid() {
        let mut tokens = Tokens::new([7; 32]);
        let (one, two) = (tokens.issue("p", USUAL_LENGTH), tokens.issue("p", USUAL_LENGTH));
        assert_ne!(one, two);
        assert_eq!(one.len(), USUAL_LENGTH);
        assert_eq!(tokens.check(&with_token(&one)).unwrap().project_id, "p");
        assert_eq!(tokens.check(&with_token(&one[1..])), Err(errors::UNKNOWN_TOKEN));
    }

    #[test]
    fn each_state_has_its_error_and_can_be_reverted() {
        let mut tokens = Tokens::new([7; 32]);
        let token = tokens.issue("p", 100);
        for (state, refusal) in [
            (CredentialState::Expired, errors::EXPIRED_TOKEN),
            (CredentialState::Revoked, errors::REVOKED_TOKEN),
            (CredentialState::Denied, errors::DENIED),
        ] {
            tokens.set_state(&token, state);
            assert_eq!(tokens.check(&with_token(&token)), Err(refusal));
        }
        tokens.set_state(&token, CredentialState::Valid);
        assert!(tokens.check(&with_token(&token)).is_ok());
        tokens.set_state("never issued", CredentialState::Valid);
        assert_eq!(tokens.check(&with_token("never issued")), Err(errors::UNKNOWN_TOKEN));
    }

    #[test]
    fn an_empty_token_counts_as_missing() {
        let tokens = Tokens::new([7; 32]);
        assert_eq!(tokens.check(&HeaderMap::new()), Err(errors::NO_TOKEN));
        assert_eq!(tokens.check(&with_token("")), Err(errors::NO_TOKEN));
    }
}
