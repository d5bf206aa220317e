//! Path templates: literal segments, and names in braces that match one segment each.
//!
//! Paths must not be decoded: they are matched as received, so an encoded spelling of a known path is another path.
//! [`crate::request::key`] checks the captured segments.

use std::fmt;
use std::str::FromStr;

/// The name of the segment that has the project id.
pub(crate) const PROJECT_ID: &str = "project_id";

/// The most segments of a template. A path with more segments matches no operation.
pub(crate) const MAX_SEGMENTS: usize = 16;

/// The longest template, in bytes.
const LONGEST: usize = 256;

/// The path of an operation, such as `/v2/{project_id}/products`.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
    segments: Box<[Segment]>,
    /// The index of the project id's segment.
    project: Option<usize>,
}

#[derive(Clone, PartialEq, Eq)]
enum Segment {
    Literal(Box<str>),
    /// Matches any segment that is not empty.
    Name(Box<str>),
}

/// How the paths of a template relate to a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// All paths match the pattern.
    Within,
    /// Some paths may match.
    Across,
    /// No path matches.
    Apart,
}

/// A path that matches an operation. Only [`super::Catalogue::operation`] creates one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMatch<'p>(&'p str);

impl<'p> PathMatch<'p> {
    /// The path as received.
    pub fn path(self) -> &'p str {
        self.0
    }
}

/// A path that is split once and compared with many templates.
pub(super) struct Split<'p> {
    path: &'p str,
    segments: [&'p str; MAX_SEGMENTS],
    count: usize,
}

impl<'p> Split<'p> {
    /// `None` if no template can match.
    pub(super) fn of(path: &'p str) -> Option<Self> {
        let mut split = Self { path, segments: [""; MAX_SEGMENTS], count: 0 };
        for segment in path.strip_prefix('/')?.split('/') {
            *split.segments.get_mut(split.count)? = segment;
            split.count += 1;
        }
        Some(split)
    }

    pub(super) fn path_match(&self) -> PathMatch<'p> {
        PathMatch(self.path)
    }
}

impl Template {
    pub(super) fn matches(&self, path: &Split<'_>) -> bool {
        self.segments.len() == path.count
            && self.segments.iter().zip(path.segments).all(|(expected, segment)| match expected {
                Segment::Literal(literal) => **literal == *segment,
                Segment::Name(_) => !segment.is_empty(),
            })
    }

    /// Whether a path can match both templates.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.segments.len() == other.segments.len()
            && self.segments.iter().zip(&other.segments).all(|pair| match pair {
                (Segment::Literal(one), Segment::Literal(other)) => one == other,
                _ => true,
            })
    }

    /// Compares the template with a pattern, in which `{name}` matches one segment and a final `**` all that follow.
    pub(super) fn relation(&self, pattern: &str) -> Relation {
        let mut relation = Relation::Within;
        let mut segments = self.segments.iter();
        for expected in pattern.split('/').skip(1) {
            if expected == "**" {
                return relation;
            }
            match segments.next() {
                None => return Relation::Apart,
                Some(_) if expected.starts_with('{') => {}
                Some(Segment::Literal(literal)) if **literal == *expected => {}
                Some(Segment::Literal(_)) => return Relation::Apart,
                Some(Segment::Name(_)) => relation = Relation::Across,
            }
        }
        if segments.next().is_none() { relation } else { Relation::Apart }
    }

    /// The names with the segments that they match in a matching path.
    pub fn captures<'t, 'p>(&'t self, path: &'p str) -> impl Iterator<Item = (&'t str, &'p str)> {
        let pairs = self.segments.iter().zip(path.split('/').skip(1));
        pairs.filter_map(|(segment, value)| match segment {
            Segment::Name(name) => Some((name.as_ref(), value)),
            Segment::Literal(_) => None,
        })
    }

    /// Its segments: `None` for one that is a name.
    pub(super) fn literals(&self) -> impl Iterator<Item = Option<&str>> {
        self.segments.iter().map(|segment| match segment {
            Segment::Literal(literal) => Some(&**literal),
            Segment::Name(_) => None,
        })
    }

    pub fn has_project(&self) -> bool {
        self.project.is_some()
    }

    /// The project id in a matching path; empty if the template has none.
    pub fn project_id<'p>(&self, path: &'p str) -> &'p str {
        self.project.and_then(|index| path.split('/').nth(index + 1)).unwrap_or_default()
    }
}

/// The text is not a valid template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadTemplate;

impl FromStr for Template {
    type Err = BadTemplate;

    fn from_str(text: &str) -> Result<Self, BadTemplate> {
        let path = text.strip_prefix('/').filter(|_| text.len() <= LONGEST).ok_or(BadTemplate)?;
        let segments = path.split('/').map(segment).collect::<Option<Box<[_]>>>().ok_or(BadTemplate)?;
        let names = || segments.iter().enumerate().filter(|(_, segment)| matches!(segment, Segment::Name(_)));
        let is_repeated = names().any(|(index, name)| segments[..index].contains(name));
        if is_repeated || segments.len() > MAX_SEGMENTS {
            return Err(BadTemplate);
        }
        let project = segments.iter().position(|segment| *segment == Segment::Name(PROJECT_ID.into()));
        Ok(Self { text: text.into(), segments, project })
    }
}

fn segment(text: &str) -> Option<Segment> {
    match text.strip_prefix('{') {
        Some(rest) => {
            let name = rest.strip_suffix('}')?;
            let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            (is_name && !name.is_empty()).then(|| Segment::Name(name.into()))
        }
        None => is_plain(text).then(|| Segment::Literal(text.into())),
    }
}

/// Whether a segment is unambiguous: 1 to 255 unreserved characters (RFC 3986 §2.3), and not `.` or `..`.
pub(crate) fn is_plain(segment: &str) -> bool {
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    (1..=255).contains(&segment.len()) && segment.bytes().all(is_unreserved) && segment != "." && segment != ".."
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Template {
        text.parse().unwrap_or_else(|_| panic!("{text}"))
    }

    #[test]
    fn an_invalid_template_is_an_error() {
        for text in [
            "",
            "v2/x",
            "/",
            "//",
            "/v2/",
            "/v2//x",
            "/v2/**",
            "/v2/*",
            "/v2/x?y=1",
            "/v2/x#y",
            "/v2/%61",
            "/v2/a b",
            "/v2/.",
            "/v2/../x",
            "/v2/{}",
            "/v2/{a",
            "/v2/a}",
            "/v2/{a}b",
            "/v2/{a b}",
            "/v2/{a}/{a}",
            "/v2/中",
            &"/a".repeat(MAX_SEGMENTS + 1),
            &format!("/{}", "a".repeat(LONGEST)),
        ] {
            assert_eq!(text.parse::<Template>(), Err(BadTemplate), "{text}");
        }
        for text in ["/a", "/v2/{project_id}/a.b/{x}", "/{a}/{b}", &"/a".repeat(MAX_SEGMENTS)] {
            assert_eq!(template(text).to_string(), text);
        }
    }

    #[test]
    fn a_path_is_matched_without_decoding_and_its_segments_are_captured() {
        let template = template("/v2/{project_id}/zones/{zone}");
        let matches = |path| Split::of(path).is_some_and(|split| template.matches(&split));
        for path in ["/v2/p/zones/z", "/v2/%41/zones/.."] {
            assert!(matches(path), "{path}");
        }
        for path in
            ["/v2/p/zones", "/v2/p/zones/", "/v2//zones/z", "/v2/p/Zones/z", "/v2/p/zones/z/", "v2/p/zones/z", "*"]
        {
            assert!(!matches(path), "{path}");
        }
        assert!(!matches(&"/a".repeat(1_000)));
        let captured: Vec<_> = template.captures("/v2/p/zones/z").collect();
        assert_eq!(captured, [("project_id", "p"), ("zone", "z")]);
        assert_eq!(template.project_id("/v2/p/zones/z"), "p");
        assert_eq!(self::template("/v2/{zone}").project_id("/v2/z"), "");
    }

    #[test]
    fn templates_overlap_if_a_path_matches_both() {
        for (one, other, overlap) in [
            ("/a/{x}", "/a/{y}", true),
            ("/a/{x}", "/a/b", true),
            ("/{x}/b", "/a/{y}", true),
            ("/a/b", "/a/c", false),
            ("/a/{x}", "/a/{x}/b", false),
            ("/a/{x}/b", "/a/{x}/c", false),
        ] {
            assert_eq!(template(one).overlaps(&template(other)), overlap, "{one} {other}");
            assert_eq!(template(other).overlaps(&template(one)), overlap, "{other} {one}");
        }
    }

    #[test]
    fn a_template_is_within_a_pattern_across_it_or_apart() {
        for (text, pattern, relation) in [
            ("/v2/{a}/b", "/v2/**", Relation::Within),
            ("/v2", "/v2/**", Relation::Within),
            ("/{v}/b", "/v2/**", Relation::Across),
            ("/v1/b", "/v2/**", Relation::Apart),
            ("/v2/{p}/job/{n}", "/v2/{project_id}/job/{id}", Relation::Within),
            ("/v2/{p}/{kind}/{n}", "/v2/{project_id}/job/{id}", Relation::Across),
            ("/v2/{p}/job", "/v2/{project_id}/job/{id}", Relation::Apart),
            ("/v2/{p}/job/1/2", "/v2/{project_id}/job/{id}", Relation::Apart),
        ] {
            assert_eq!(template(text).relation(pattern), relation, "{text} {pattern}");
        }
    }

    #[test]
    fn plain_segments_have_one_spelling() {
        for plain in ["a", "A-1._~", "...", &"a".repeat(255)] {
            assert!(is_plain(plain), "{plain}");
        }
        for odd in ["", ".", "..", "a%2F", "a+b", "a;b", "a b", "é", "a:b", "a@b", &"a".repeat(256)] {
            assert!(!is_plain(odd), "{odd}");
        }
    }
}
