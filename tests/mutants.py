#!/usr/bin/env python3
"""Shows that the model of the sharing rules (tests/model) has teeth.

Each mutation breaks one rule in a scratch copy of the sources, and the model has to notice: a run that
passes, doesn't compile or dies of something else is a survivor. A mutation whose text isn't in the sources
exactly once has been overtaken by them and must be written anew.

    tests/mutants.py                 all of them
    tests/mutants.py NAME…           some
    SEQUENCES=9000 tests/mutants.py  look longer for each
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
# Always the same place, so that only this crate is built again; and under a version of its own, so that
# what is built here is never taken for the real thing.
SCRATCH = TARGET / "mutants"
BIN = '[[bin]]\nname = "workspace-gateway"\npath = "src/main.rs"\n'
PACKAGE = 'name = "workspace-gateway"\nversion = "'

GRANTS, STORE, TRIPWIRE = "src/cache/grants.rs", "src/cache/store.rs", "src/cache/tripwire.rs"
PATH, FETCH, RELEASE = "src/gateway.rs", "src/gateway/fetch.rs", "src/gateway/release.rs"
LOOK_UP, SETTLE, ASSEMBLE = "src/gateway/look_up.rs", "src/gateway/settle.rs", "src/gateway/assemble.rs"
BODY, FRESHNESS, FLIGHTS = "src/cache/body.rs", "src/cache/freshness.rs", "src/cache/flights.rs"
PAUSES, WAIT, WISH = "src/cache/pauses.rs", "src/gateway/wait.rs", "src/request/wish.rs"

# Name, what it breaks in DESIGN, file, text, text instead.
MUTATIONS = [
    (
        "an-error-proves",
        "§4 proof: a status alone proves nothing",
        BODY,
        "(true, false) => Ok(()),",
        "_ if true => Ok(()),",
    ),
    (
        "life-from-landing",
        "§4 a grant lives from when its proof was sent",
        FETCH,
        "self.grants.depart(question.asked.grantee.clone(), sent)",
        "self.grants.depart(question.asked.grantee.clone(), sent + question.live.answer_timeout / 2)",
    ),
    (
        "denial-keeps-the-grant",
        "§4 401/403 removes the grant at once",
        GRANTS,
        "let proved = books.proved.remove(&self.grantee);",
        "let proved = books.proved.get(&self.grantee).copied();",
    ),
    (
        "late-answers-grant",
        "§4 what was sent before a denied request grants nothing",
        GRANTS,
        "denied.is_some_and(|denied| denied >= self.sent)",
        "denied.is_some_and(|_| false)",
    ),
    (
        "denial-forgotten",
        "§4 a denial is remembered for denial_ttl",
        GRANTS,
        "refusal.filter(|refusal| is_latest && refusal.size()",
        "refusal.filter(|refusal| false && is_latest && refusal.size()",
    ),
    (
        "denial-remembered-on",
        "§4 and no longer",
        GRANTS,
        "let until = now + books.terms.denial_ttl;",
        "let until = now + 2 * books.terms.denial_ttl;",
    ),
    (
        "old-denial-refuses",
        "§4 a denial of what was sent before the proof is not remembered",
        GRANTS,
        "proved.is_none_or(|proved| proved <= self.sent)",
        "proved.is_none_or(|_| true)",
    ),
    (
        "grant-in-every-scope",
        "§4 a grant and a denial are for operation and project",
        GRANTS,
        "#[derive(Clone, Debug, PartialEq, Eq, Hash)]\npub struct Grantee {",
        "impl PartialEq for Grantee {\n    fn eq(&self, other: &Self) -> bool {\n        self.caller == other.caller\n    }\n}\n"
        "impl Eq for Grantee {}\n"
        "impl std::hash::Hash for Grantee {\n    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {\n"
        "        self.caller.hash(state);\n    }\n}\n"
        "#[derive(Clone, Debug)]\npub struct Grantee {",
    ),
    (
        "grant-for-every-caller",
        "§4 a grant and a denial are for one credential",
        GRANTS,
        "#[derive(Clone, Debug, PartialEq, Eq, Hash)]\npub struct Grantee {",
        "impl PartialEq for Grantee {\n    fn eq(&self, other: &Self) -> bool {\n        self.scope == other.scope\n    }\n}\n"
        "impl Eq for Grantee {}\n"
        "impl std::hash::Hash for Grantee {\n    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {\n"
        "        self.scope.hash(state);\n    }\n}\n"
        "#[derive(Clone, Debug)]\npub struct Grantee {",
    ),
    (
        "no-proof-needed",
        "§2.2 no proof, no share",
        LOOK_UP,
        "            Standing::Granted => return",
        "            Standing::Granted | Standing::Unproved => return",
    ),
    (
        "lapsed-is-granted",
        "§4 a lapsed grant shows nothing until the caller's own call has failed",
        LOOK_UP,
        "            Standing::Granted => return",
        "            Standing::Granted | Standing::Lapsed => return",
    ),
    (
        "unproved-board-shared-flights",
        "§5 a caller without a grant flies alone",
        LOOK_UP,
        "let slot = Slot { owner: Some(caller), key: Arc::clone(&question.asked.key) };",
        "let slot = self.store.slot(&question.asked.key, caller);",
    ),
    (
        "refusal-to-followers",
        "§5 nobody inherits another caller's refusal",
        RELEASE,
        "Verdict::Denial | Verdict::Personal => is_own,",
        "Verdict::Denial | Verdict::Personal => true,",
    ),
    (
        "not-rechecked-at-release",
        "§4 the grant is checked again when followers are released",
        RELEASE,
        "let may_share = || stands() && self.store",
        "let may_share = || self.store",
    ),
    (
        "failure-to-everyone",
        "§5 a failure goes to those whose grant stands",
        RELEASE,
        "Verdict::Throttled | Verdict::Failure => is_own || stands(),",
        "Verdict::Throttled | Verdict::Failure => true,",
    ),
    (
        "no-answer-to-everyone",
        "§5 neither is no answer at all for those whose grant is over",
        RELEASE,
        "Err(error) if is_own || stands() =>",
        "Err(error) =>",
    ),
    (
        "one-is-throttled-all-are",
        "§5 a 429 may be the leader's own",
        RELEASE,
        "None if answer.verdict == Verdict::Throttled && !is_own",
        "None if false && answer.verdict == Verdict::Throttled && !is_own",
    ),
    (
        "everyone-tries-in-turn",
        "§5 no thundering retry: after three throttled leaders the 429 is for all",
        RELEASE,
        "&& !is_own && !seat.is_last => Release::Elect",
        "&& !is_own => Release::Elect",
    ),
    (
        "foul-failure-excuses",
        "§2.1 a failure that the client may have brought about itself excuses no lapsed grant",
        RELEASE,
        "self.excusable(question, is_own && *is_plain, now)",
        "self.excusable(question, is_own, now)",
    ),
    (
        "purge-ignored-at-release",
        "§4 purge epochs are checked when followers are released",
        STORE,
        "Epoch(self.purges) == asked && (slot",
        "(slot",
    ),
    (
        "purge-ignored-at-store",
        "§4 purge epochs are checked when an answer is stored",
        STORE,
        "if Epoch(rules.purges) != asked {",
        "if false && Epoch(rules.purges) != asked {",
    ),
    (
        "older-replaces-newer",
        "§4 newer means sent later",
        STORE,
        "before.life().sent >= entry.life().sent",
        "false && before.life().sent >= entry.life().sent",
    ),
    (
        "grace-for-another's-failure",
        "§4 grace is for the caller's own failed attempt",
        RELEASE,
        "Standing::Lapsed if is_own => {}",
        "Standing::Lapsed => {}",
    ),
    (
        "grace-unbounded",
        "§4 grace ends outage_grace after the last proof",
        GRANTS,
        "books.terms.outage_grace.is_some_and(|grace| age < grace)",
        "books.terms.outage_grace.is_some()",
    ),
    (
        "grace-where-refused",
        '§4 on_outage = "refuse" turns grace off',
        ASSEMBLE,
        "(grants.on_outage == OnOutage::Serve).then_some(",
        "true.then_some(",
    ),
    (
        "stale-without-end",
        "§6 stale answers end stale_if_error after their ttl",
        FRESHNESS,
        "} else if age < ttl.saturating_add(stale_if_error) {",
        "} else if age < ttl.saturating_add(2 * stale_if_error) {",
    ),
    (
        "tripwire-off",
        "§4 alternating views turn a scope private",
        STORE,
        "tripped = entry.views.add(view);",
        "tripped = entry.views.add(view) && false;",
    ),
    (
        "tripwire-jumpy",
        "§4 a single difference is a catalogue change",
        TRIPWIRE,
        "const TRIPS_AT: usize = 4;",
        "const TRIPS_AT: usize = 2;",
    ),
    (
        "overlaps-compared",
        "§4 overlapping requests are never compared",
        TRIPWIRE,
        "if view.sent < last.received {",
        "if view.sent < last.sent {",
    ),
    (
        "sharing-caller-ignored",
        '§4 sharing = "caller" keeps answers apart',
        STORE,
        "self.all_private || scope.operation().sharing == Sharing::Caller || self.private",
        "self.all_private || self.private",
    ),
    (
        "uncacheable-forgotten",
        "§5 what must not be shared is remembered",
        STORE,
        "filter(|mark| now < mark.until)",
        "filter(|mark| now > mark.until)",
    ),
    (
        "no-store-to-followers",
        "§5 what must not be shared goes to its leader",
        RELEASE,
        "Verdict::Proof(Err(_)) | Verdict::NoList(_) => false,",
        "Verdict::Proof(Err(_)) | Verdict::NoList(_) => stands(),",
    ),
    (
        "unproved-mark-for-all",
        "§2.3 an unproved caller marks nothing that others meet",
        SETTLE,
        "Verdict::NoList(reason) => Some(self.mark_uncacheable(call, reason)),",
        "Verdict::NoList(reason) => {\n"
        "let slot = self.store.slot(&call.question.asked.key, call.question.asked.grantee.caller);\n"
        "self.store.mark_uncacheable(slot, reason, call.times.received);\n"
        "Some(reason.as_str())\n}",
    ),
    (
        "denied-leader-is-trusted",
        "§2.3 nor does one who has been denied meanwhile",
        SETTLE,
        "call.slot.owner.is_some() || self.grants.stands(&call.question.asked.grantee, call.times.received)",
        "call.slot.owner.is_some() || call.times.received >= call.times.sent",
    ),
    (
        "foul-404-for-all",
        "§2.1 what was sent besides the key decides nothing for others",
        FETCH,
        "!(is_plain && self.is_trusted(&call))",
        "!(self.is_trusted(&call) || is_plain)",
    ),
    (
        "streamed-denial-unheard",
        "§4 a denial ends the grant however the request got upstream",
        "src/gateway/forward.rs",
        "departure.denied(None, self.clock.now());",
        "drop(departure);",
    ),
    (
        "large-denial-unheard",
        "§4 and however large it is",
        SETTLE,
        "                departure.denied(None, call.times.received);",
        "                drop(departure);",
    ),
    (
        "elections-without-end",
        "§5 three elections at most, then alone",
        PATH,
        "flown > MAX_ELECTIONS",
        "flown > 1_000",
    ),
    (
        "deadline-ignored",
        "§5 followers wait until their own deadline",
        PATH,
        "Timers::begin(live.answer_timeout,",
        "Timers::begin(2 * live.answer_timeout,",
    ),
    (
        "waiters-unbounded",
        "§5 past the bounds a request flies uncoalesced",
        FLIGHTS,
        ">= bounds.waiting {",
        ">= usize::MAX {",
    ),
    (
        "flights-unbounded",
        "§5 past the bounds a request flies uncoalesced",
        FLIGHTS,
        "if aloft.len() >= bounds.flights {",
        "if aloft.len() == usize::MAX {",
    ),
    (
        "flights-survive-a-purge",
        "§4 nobody boards a flight from before a purge",
        ASSEMBLE,
        "        self.shared_flights.close_all();\n",
        "",
    ),
    (
        "lone-flights-survive-a-purge",
        "§4 of whatever kind it is",
        ASSEMBLE,
        "        self.lone_flights.close_all();\n",
        "",
    ),
    (
        "one-bound-for-all",
        "§5 callers without a grant take no room of others",
        PATH,
        "if slot.owner.is_none() { &self.shared_flights } else { &self.lone_flights }",
        "&self.shared_flights",
    ),
    (
        "refreshed-without-end",
        "§6 stale-while-revalidate ends",
        FRESHNESS,
        "} else if age < ttl.saturating_add(stale_while_revalidate) {",
        "} else if age < ttl.saturating_add(2 * stale_while_revalidate) {",
    ),
    (
        "refreshed-twice",
        "§5 one question at a time, in the background too",
        PATH,
        "if let Some(pilot) = self.flights(&slot).begin(&slot) {",
        "if let (_, Some(pilot)) = self.flights(&slot).solo() {",
    ),
    (
        "latest-word-ignored",
        "§6 what upstream has just said no to is not given stale",
        LOOK_UP,
        "wish.takes_stale() && no.is_none() &&",
        "wish.takes_stale() &&",
    ),
    (
        "unkept-given-stale",
        "§6 nor is what can't be kept any more",
        LOOK_UP,
        "&& no.is_none() && self.store.uncacheable(&slot, now).is_none();",
        "&& no.is_none();",
    ),
    (
        "no-without-end",
        "§6 a negative answer lives error_ttl",
        LOOK_UP,
        "no.as_ref().filter(|no| accepted(no))",
        "no.as_ref().filter(|_| true)",
    ),
    (
        "no-from-anyone",
        "§6 and comes from those who are granted",
        SETTLE,
        "if !is_plain || !is_granted || life",
        "if !is_plain || life",
    ),
    (
        "foul-no-kept",
        "§2.1 and of nothing that was sent besides",
        SETTLE,
        "if !is_plain || !is_granted || life",
        "if !is_granted || life",
    ),
    (
        "older-no-replaces-yes",
        "§4 newer means sent later, of a no as well",
        STORE,
        "|known| known.life().sent >= no.life().sent",
        "|known| false && known.life().sent >= no.life().sent",
    ),
    (
        "impatient",
        "§5 nobody with something stale in hand waits before patience is over",
        WAIT,
        "sleep(patience)",
        "sleep(patience / 2)",
    ),
    (
        "patient",
        "§5 nor any longer",
        WAIT,
        "sleep(patience)",
        "sleep(2 * patience)",
    ),
    (
        "strangers-ask-whether",
        "§4 proof flights are unconditional",
        LOOK_UP,
        "why: Forward::Miss, before: None,",
        "why: Forward::Miss, before: self.store.get(&self.store.slot(&question.asked.key, caller)),",
    ),
    (
        "any-304-will-do",
        "§4 a 304 is proof of what was asked about",
        FETCH,
        "if validator.is_meant_by(response.headers()) => {",
        "if validator.is_meant_by(response.headers()) || true => {",
    ),
    (
        "no-cache-boards",
        "§6 no-cache joins no flight from before",
        PATH,
        "|| flown > MAX_ELECTIONS || question.asked.wish.no_cache,",
        "|| flown > MAX_ELECTIONS,",
    ),
    (
        "no-cache-from-memory",
        "§6 and is not answered from memory",
        WISH,
        "        !self.no_cache\n            && self.max_age",
        "        self.max_age",
    ),
    (
        "no-cache-given-stale",
        "§6 unless upstream fails",
        WISH,
        "!self.no_cache && self.max_age.is_none()",
        "self.max_age.is_none()",
    ),
    (
        "max-age-ignored",
        "§6 a client says how old is too old",
        WISH,
        "|max_age| age <= max_age",
        "|_| true",
    ),
    (
        "min-fresh-ignored",
        "§6 and how fresh it must be",
        WISH,
        "|min_fresh| left >= min_fresh",
        "|_| true",
    ),
    (
        "only-if-cached-asks",
        "§6 only-if-cached asks nobody",
        PATH,
        "LookUp::Ask { .. } if question.asked.wish.only_if_cached =>",
        "LookUp::Ask { .. } if false && question.asked.wish.only_if_cached =>",
    ),
    (
        "only-if-cached-refreshes",
        "§6 not even in the background",
        PATH,
        "if !question.asked.wish.only_if_cached {",
        "if !question.asked.wish.only_if_cached || true {",
    ),
    (
        "one-stops-all",
        "§6 who is throttled alone stops nobody else",
        PAUSES,
        "Cause::Throttled => pause.stop(grantee.caller, until, now),",
        "Cause::Throttled => pause.stop_everybody(until),",
    ),
    (
        "many-stop-none",
        "§6 when two are throttled all pause",
        PAUSES,
        "if self.throttled.iter().any(",
        "if false && self.throttled.iter().any(",
    ),
    (
        "paused-as-upstream-wishes",
        "§6 for a minute at most",
        PAUSES,
        "const LONGEST: Duration = Duration::from_secs(60);",
        "const LONGEST: Duration = Duration::from_secs(600);",
    ),
    (
        "pause-cut-short",
        "§6 and no pause is cut short by another",
        PAUSES,
        "before.map_or(until, |before| until.max(before))",
        "before.map_or(until, |before| until.min(before))",
    ),
    (
        "retry-after-ignored",
        "§6 Retry-After is heard",
        SETTLE,
        "(Cause::Throttled, wished.unwrap_or(error_ttl))",
        "(Cause::Throttled, error_ttl)",
    ),
    (
        "foul-failure-pauses",
        "§2.1 a failure of the client's own making pauses nothing of others",
        SETTLE,
        "        if call.is_plain {\n            self.pauses.begin(",
        "        if call.is_plain || true {\n            self.pauses.begin(",
    ),
    (
        "stranger-pauses",
        "§2.3 nor does a stranger's",
        SETTLE,
        "Standing::Lapsed => slot.owner.is_some() && call.is_plain,\n            Standing::Unproved | Standing::Denied { .. } => false,",
        "Standing::Lapsed | Standing::Unproved | Standing::Denied { .. } => true,",
    ),
    (
        "success-pauses-on",
        "§6 a success ends the pause",
        SETTLE,
        "            self.pauses.end(slot);\n",
        "",
    ),
    (
        "pauses-survive-a-purge",
        "§4 a purge forgets pauses",
        ASSEMBLE,
        "        self.pauses.purge(selection);\n",
        "",
    ),
    (
        "short-way-without-grant",
        "§4 who repeats a head needs a grant, too",
        LOOK_UP,
        "if !self.grants.stands(&asked.grantee, now) {",
        "if false {",
    ),
    (
        "short-way-to-what-is-stale",
        "§6 what is repeated is fresh",
        LOOK_UP,
        "asked.accepts(&entry, now).then_some(entry)",
        "Some(entry)",
    ),
    (
        "grace-without-attempt",
        "§4 grace takes an attempt of the caller's own",
        LOOK_UP,
        "&& self.pauses.hold_slot(&slot, now)\n",
        "&& !self.pauses.hold_slot(&slot, now)\n",
    ),
    (
        "no-store-kept",
        "§6 a client's no-store is obeyed",
        WISH,
        "if directives.has(\"no-store\") {",
        "if false && directives.has(\"no-store\") {",
    ),
    (
        "unsayable-denial-said",
        "§6 what must not be stored is not said again",
        SETTLE,
        "may_be_said_again.then(",
        "(may_be_said_again || true).then(",
    ),
]


def copy_sources() -> None:
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
    # Not their times: what was built here before is older than any of it.
    shutil.copyfile(ROOT / "README.md", SCRATCH / "README.md")
    for name in ["Cargo.toml", "Cargo.lock"]:
        text = (ROOT / name).read_text().replace(PACKAGE, PACKAGE + "0.0.0-mutant.")
        # The model doesn't start the program, which would be linked again for each.
        (SCRATCH / name).write_text(text.replace("autotests = false", "autotests = false\nautobins = false").replace(BIN, ""))
    for name in ["src", "tests", "benches", "config"]:
        shutil.copytree(ROOT / name, SCRATCH / name, copy_function=shutil.copyfile)
    # The model alone: the rest of the suite would be built again for each.
    suite = (ROOT / "tests/suite.rs").read_text()
    (SCRATCH / "tests/suite.rs").write_text(re.sub(r"^mod (?!support|model)\w+;\n", "", suite, flags=re.MULTILINE))


def run_model(sequences: str) -> tuple[str, str]:
    """What came of the model: `passes`, `caught`, or what else went wrong; and its words."""
    environment = {
        **os.environ,
        "CARGO_TARGET_DIR": str(TARGET),
        "CARGO_INCREMENTAL": "1",
        # Half of each build would be for a debugger.
        "CARGO_PROFILE_DEV_DEBUG": "0",
        "CARGO_BIN_EXE_workspace-gateway": "there is none",
        "WORKSPACE_GATEWAY_TEST_MODEL_SEQUENCES": sequences,
        "WORKSPACE_GATEWAY_TEST_MODEL_AS_FOUND": "1",
    }
    build = ["cargo", "test", "--quiet", "--locked", "--test", "suite", "model::"]
    try:
        ran = subprocess.run(build, cwd=SCRATCH, env=environment, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        return "hangs", ""
    if ran.returncode == 0:
        return "passes", ran.stdout
    wrong = re.search(r"^(PROPERTY|RULES): .*", ran.stdout + ran.stderr, re.MULTILINE)
    return ("caught", wrong[0]) if wrong else ("broken", ran.stdout + ran.stderr)


def main() -> int:
    chosen = [mutation for mutation in MUTATIONS if not sys.argv[1:] or mutation[0] in sys.argv[1:]]
    sequences = os.environ.get("SEQUENCES", "2000")
    copy_sources()
    came, words = run_model("100")
    if came != "passes":
        print(f"The sources as they are: {came}\n{words}")
        return 1
    survivors = 0
    for name, rule, file, text, instead in chosen:
        path = SCRATCH / file
        source = path.read_text()
        begun = time.monotonic()
        if source.count(text) == 1:
            path.write_text(source.replace(text, instead))
            came, words = run_model(sequences)
            if came == "passes":
                # Sequences are random, and some rules seldom matter: those get a longer look.
                came, words = run_model(str(5 * int(sequences)))
            path.write_text(source)
        else:
            came, words = "overtaken", f"{file} has the text {source.count(text)} times"
        survivors += came != "caught"
        print(f"{came:<9} {time.monotonic() - begun:4.0f} s  {name:<31} {rule}", flush=True)
        print(f"{'':17} {(words.strip() or '-').splitlines()[-1][:110]}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
