//! HTTP statuses as metric labels. The set is fixed, so that upstream cannot add series.

use http::StatusCode;

/// The status itself if the services' documentation has it or a proxy makes it, else its class.
pub(super) fn status_label(status: StatusCode) -> &'static str {
    const NAMED: [(u16, &str); 22] = [
        (200, "200"),
        (201, "201"),
        (202, "202"),
        (204, "204"),
        (206, "206"),
        (304, "304"),
        (400, "400"),
        (401, "401"),
        (403, "403"),
        (404, "404"),
        (405, "405"),
        (409, "409"),
        (413, "413"),
        (414, "414"),
        (429, "429"),
        (431, "431"),
        (494, "494"),
        (500, "500"),
        (502, "502"),
        (503, "503"),
        (504, "504"),
        (508, "508"),
    ];
    let named = NAMED.iter().find(|(code, _)| *code == status.as_u16());
    named.map_or_else(
        || match status.as_u16() / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            5 => "5xx",
            _ => "other",
        },
        |(_, label)| label,
    )
}
