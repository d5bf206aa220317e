// Who sends requests, by the id that the log has. The gateway sorts them: those that were refused lately come first.

const CALLERS = ["Caller", "Requests", "From memory", "Refused", "Last refusal", "Last seen"];

/** A gateway of an older version does not list them. */
function showCallers({ by_id: rows, remembered }) {
    byId("by-id").hidden = !rows;
    if (!rows) {
        return;
    }
    const table = byId("by-id-rows");
    const header = table.tHead.rows[0];
    if (header.cells.length === 0) {
        header.append(...CALLERS.map((name, index) => element("th", { scope: "col", role: "columnheader", class: index > 0 ? "num" : "" }, name)));
    }
    const byKey = new Map(rows.map((row) => [row.id, row]));
    keep(table.tBodies[0], [...byKey.keys()], callerRow, (row, id) => updateCaller(row, byKey.get(id)));
    byId("by-id-scroll").hidden = rows.length === 0;
    const some = rows.length < remembered ? `${count(rows.length)} of ${count(remembered)} callers. ` : "";
    say(byId("by-id-note"), rows.length === 0 ? "No request has had a credential yet." : `${some}Refused in the last five minutes first, then those seen last.`);
}

function callerRow(id) {
    const cells = CALLERS.slice(1).map((name) => element("td", { role: "cell", class: "num", "data-label": name }));
    return element("tr", { role: "row" }, element("th", { scope: "row", role: "rowheader" },
        element("span", { class: "mono" }, id), " ", element("span", { class: "tag" }), element("span", { class: "note who" })), ...cells);
}

function updateCaller(row, { access_key: key, user_agent: agent, is_accepted: isAccepted, requests, hits, refusals, last_seen_seconds: seen, last_refusal_seconds: refused }) {
    const [who, ...cells] = row.cells;
    const tag = who.querySelector(".tag");
    tag.hidden = isAccepted;
    say(tag, isAccepted ? "" : "never accepted");
    say(who.querySelector(".who"), [key && `access key ${key}`, agent].filter(Boolean).join(" · "));
    const words = [count(requests), count(hits), count(refusals), refused === null ? "–" : ago(refused), seen < 2 ? "just now" : ago(seen)];
    words.forEach((word, index) => say(cells[index], word));
    row.classList.toggle("is-bad", refused !== null && refused <= 300);
}
