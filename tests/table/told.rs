//! The most telling cells, written down: upstream × what there is × the client's wish, then what the
//! client sees, what the next request meets a second later when upstream is well again, and, where that
//! is a pause, what comes of a request at its end.
//!
//! Bodies: `old` was kept before, `before` was said a second before; `new` is what upstream says now and
//! `cut` the beginning of it; `next` is what it says afterwards; `own` is the gateway's own error.

pub(super) const CELLS: &str = "
200 × unproved, nothing kept × no wish
    200 new, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

200 × unproved, fresh × no wish
    200 new, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

200 × unproved, fresh × only-if-cached
    504 own only-if-cached, no Cache-Status, 0 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

200 × nothing kept × no wish
    200 new, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

200 × fresh × no wish
    200 old, hit; ttl=200, age 100, 0 asked
    then 200 old, hit; ttl=199, age 101, 0 asked

200 × fresh × no-cache
    200 new, fwd=request; fwd-status=200; stored; detail=client-no-cache, age 0, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

200 × fresh × max-age=50
    200 new, fwd=request; fwd-status=200; stored; detail=client-max-age, age 0, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

200 × fresh × no-store
    200 new, fwd=bypass; detail=client-no-store, 1 asked
    then 200 old, hit; ttl=199, age 101, 0 asked

200 × fresh × if-none-match
    304 empty, hit; ttl=200, age 100, 0 asked
    then 200 old, hit; ttl=199, age 101, 0 asked

200 × stale × no wish
    200 old, hit; ttl=-100; detail=revalidating, age 400, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

200 × stale × only-if-cached
    200 old, hit; ttl=-100; detail=revalidating, age 400, 0 asked
    then 200 old, hit; ttl=-101; detail=revalidating, age 401, 1 asked

200 × stale × if-none-match
    304 empty, hit; ttl=-100; detail=revalidating, age 400, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

200 × old × no wish
    200 new, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

200 × old × only-if-cached
    504 own only-if-cached, no Cache-Status, 0 asked
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

200 × old, paused × no wish
    200 old, hit; ttl=-700; detail=backoff, age 1000, 0 asked
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, 0 asked
    after 4 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

200 × old, paused × no-cache
    200 new, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

200 × old, negative × no wish
    404 before, hit; ttl=4; detail=negative, age 1, 0 asked
    then 404 before, hit; ttl=3; detail=negative, age 2, 0 asked

200 × old, negative × no-cache
    200 new, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

200 × gone × no wish
    200 new, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

200 × lapsed × no wish
    200 new, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

200 × lapsed × only-if-cached
    504 own only-if-cached, no Cache-Status, 0 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

200 × denied × no-cache
    401 before, hit; ttl=1; detail=denied, age 1, 0 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

200 × denied × no-store
    200 new, fwd=bypass; detail=client-no-store, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

1xx, then 200 × nothing kept × no wish
    200 new, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

200 no-store × unproved, fresh × no wish
    200 new, fwd=miss; fwd-status=200; detail=cache-directives, age 0, 1 asked
    then 200 old, hit; ttl=199, age 101, 0 asked

200 no-store × stale × no wish
    200 old, hit; ttl=-100; detail=revalidating, age 400, 1 asked
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

200 no-store × lapsed × no wish
    200 new, fwd=miss; fwd-status=200; detail=cache-directives, age 0, 1 asked
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

200 max-age=0 × nothing kept × no wish
    200 new, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, 1 asked
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

200 with HTML × nothing kept × no wish
    200 new, fwd=miss; fwd-status=200; detail=not-json, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=uncacheable, age 0, 1 asked

200 with HTML × old × no wish
    200 new, fwd=stale; fwd-status=200; detail=not-json, 1 asked
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

200 with error_code × unproved, fresh × no wish
    200 new, fwd=miss; fwd-status=200; detail=not-products, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

200 with error_code × fresh × no-cache
    200 new, fwd=request; fwd-status=200; detail=not-products, 1 asked
    then 200 old, hit; ttl=199, age 101, 0 asked

Content-Length too short × gone × no wish
    200 new, fwd=stale; fwd-status=200; detail=not-json, 1 asked
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

204 × stale × no wish
    200 old, hit; ttl=-100; detail=revalidating, age 400, 1 asked
    then 200 old, hit; ttl=-101; detail=revalidating, age 401, 1 asked

301 × nothing kept × no wish
    301 new, fwd=miss; fwd-status=301; detail=status, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, 1 asked

304 × old with ETag × no wish
    200 old, fwd=stale; fwd-status=304; stored; detail=expired, age 0, 1 asked
    then 200 old, hit; ttl=299, age 1, 0 asked

304 × gone with ETag × if-none-match
    304 empty, fwd=stale; fwd-status=304; stored; detail=expired, age 0, 1 asked
    then 200 old, hit; ttl=299, age 1, 0 asked

304 × old × no wish
    200 old, fwd=stale; detail=broken, age 1000, 1 asked
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, 0 asked
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

304 × nothing kept × no wish
    502 own broken, fwd=miss; detail=broken, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, 1 asked

304 of another ETag × old with ETag × no wish
    200 old, fwd=stale; detail=broken, age 1000, 1 asked
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, 0 asked
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

400 × old × no wish
    400 new, fwd=stale; fwd-status=400; stored; detail=expired, 1 asked
    then 400 new, hit; ttl=4; detail=negative, age 1, 0 asked

404 × stale × no wish
    200 old, hit; ttl=-100; detail=revalidating, age 400, 1 asked
    then 404 new, hit; ttl=4; detail=negative, age 1, 0 asked

404 × unproved, nothing kept × no wish
    404 new, fwd=miss; fwd-status=404; detail=status, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

405 × gone × no wish
    405 new, fwd=stale; fwd-status=405; stored; detail=expired, 1 asked
    then 405 new, hit; ttl=4; detail=negative, age 1, 0 asked

401 × fresh × no-cache
    401 new, fwd=request; fwd-status=401; detail=denied, 1 asked
    then 401 new, hit; ttl=1; detail=denied, age 1, 0 asked

401 × stale × no wish
    200 old, hit; ttl=-100; detail=revalidating, age 400, 1 asked
    then 401 new, hit; ttl=1; detail=denied, age 1, 0 asked

403 × unproved, fresh × no wish
    403 new, fwd=miss; fwd-status=403; detail=denied, 1 asked
    then 403 new, hit; ttl=1; detail=denied, age 1, 0 asked

401 × lapsed × no wish
    401 new, fwd=miss; fwd-status=401; detail=denied, 1 asked
    then 401 new, hit; ttl=1; detail=denied, age 1, 0 asked

401 × fresh × no-store
    401 new, fwd=bypass; detail=client-no-store, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

494 × old × no wish
    494 new, fwd=stale; fwd-status=494; detail=status, 1 asked
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

429 × unproved, fresh × no wish
    429 new, fwd=miss; fwd-status=429; detail=status, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

429 Retry-After: seconds × old × no wish
    200 old, fwd=stale; fwd-status=429; detail=status, age 1000, 1 asked
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, 0 asked
    after 30 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

429 Retry-After: date × stale × no wish
    200 old, hit; ttl=-100; detail=revalidating, age 400, 1 asked
    then 200 old, hit; ttl=-101; detail=backoff, age 401, 0 asked
    after 30 s 200 old, hit; ttl=-130; detail=revalidating, age 430, 1 asked

429 Retry-After: garbage × lapsed × no wish
    200 old, fwd=stale; fwd-status=429; detail=status, age 400, 1 asked
    then 200 old, hit; ttl=-101; detail=backoff, age 401, 0 asked
    after 5 s 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

429 Retry-After: seconds × gone × no wish
    429 new, fwd=stale; fwd-status=429; detail=status, 1 asked
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

500 × fresh × no wish
    200 old, hit; ttl=200, age 100, 0 asked
    then 200 old, hit; ttl=199, age 101, 0 asked

500 × fresh × no-cache
    200 old, fwd=request; fwd-status=500; detail=status, age 100, 1 asked
    then 200 old, hit; ttl=199, age 101, 0 asked

500 × stale × no wish
    200 old, hit; ttl=-100; detail=revalidating, age 400, 1 asked
    then 200 old, hit; ttl=-101; detail=backoff, age 401, 0 asked
    after 5 s 200 old, hit; ttl=-105; detail=revalidating, age 405, 1 asked

500 × old, negative × no-cache
    200 old, fwd=stale; fwd-status=500; detail=status, age 1000, 1 asked
    then 404 before, hit; ttl=3; detail=negative, age 2, 0 asked

502 × lapsed × no wish
    200 old, fwd=stale; fwd-status=502; detail=status, age 400, 1 asked
    then 200 old, hit; ttl=-101; detail=backoff, age 401, 0 asked
    after 5 s 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

503 × old × max-age=50
    200 old, fwd=stale; fwd-status=503; detail=status, age 1000, 1 asked
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, 0 asked
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

503 Retry-After: an hour × stale × no wish
    200 old, hit; ttl=-100; detail=revalidating, age 400, 1 asked
    then 200 old, hit; ttl=-101; detail=backoff, age 401, 0 asked
    after 60 s 200 old, hit; ttl=-160; detail=revalidating, age 460, 1 asked

504 × gone × no wish
    504 new, fwd=stale; fwd-status=504; detail=status, 1 asked
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

504 × unproved, fresh × no wish
    504 new, fwd=miss; fwd-status=504; detail=status, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

401 cut off × fresh × no-cache
    401 own refusal-incomplete, fwd=request; detail=refusal-incomplete, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

401 cut off × stale × no wish
    200 old, hit; ttl=-100; detail=revalidating, age 400, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

connection refused × nothing kept × no wish
    502 own connect, fwd=miss; detail=connect, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, 1 asked

connection refused × old × no wish
    200 old, fwd=stale; detail=connect, age 1000, 1 asked
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, 0 asked
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

name not resolved × stale × no wish
    200 old, hit; ttl=-100; detail=revalidating, age 400, 1 asked
    then 200 old, hit; ttl=-101; detail=backoff, age 401, 0 asked
    after 5 s 200 old, hit; ttl=-105; detail=revalidating, age 405, 1 asked

TLS fails × lapsed × no wish
    200 old, fwd=stale; detail=tls, age 400, 1 asked
    then 200 old, hit; ttl=-101; detail=backoff, age 401, 0 asked
    after 5 s 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

reset before the head × nothing kept × no wish
    502 own broken, fwd=miss; detail=broken, 2 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, 1 asked

reset before the head × old × no wish
    200 old, fwd=stale; detail=broken, age 1000, 2 asked
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, 0 asked
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

reset before the head × stale × no-store
    502 own broken, fwd=bypass; detail=client-no-store; failure=broken, 2 asked
    then 200 old, hit; ttl=-101; detail=revalidating, age 401, 1 asked

reset mid-body × old × no wish
    200 old, fwd=stale; detail=broken, age 1000, 1 asked
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, 0 asked
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

reset mid-body × fresh × no-store
    200 cut, fwd=bypass; detail=client-no-store, 1 asked
    then 200 old, hit; ttl=199, age 101, 0 asked

chunks cut off × unproved, nothing kept × no wish
    502 own broken, fwd=miss; detail=broken, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

Content-Length too long × gone × no wish
    502 own broken, fwd=stale; detail=broken, 1 asked
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

giant head × old × if-none-match
    304 empty, fwd=stale; detail=broken, age 1000, 1 asked
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, 0 asked
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

garbage × stale × only-if-cached
    200 old, hit; ttl=-100; detail=revalidating, age 400, 0 asked
    then 200 old, hit; ttl=-101; detail=revalidating, age 401, 1 asked

garbage × old × no wish
    200 old, fwd=stale; detail=broken, age 1000, 1 asked
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, 0 asked
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

slow head × old × no wish
    200 old, fwd=stale; detail=first-byte, age 1000, 1 asked
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, 0 asked
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked

slow head × nothing kept × no wish
    504 own first-byte, fwd=miss; detail=first-byte, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, 1 asked

slow body × lapsed × no wish
    200 old, fwd=stale; detail=timeout, age 400, 1 asked
    then 200 old, hit; ttl=-101; detail=backoff, age 401, 0 asked
    after 5 s 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

slow body × unproved, nothing kept × no wish
    504 own timeout, fwd=miss; detail=timeout, 1 asked
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked

late 200 × old × no wish
    200 old, fwd=stale; detail=stale-if-slow, age 1000, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

late 200 × old × no-cache
    200 new, fwd=stale; fwd-status=200; stored; detail=expired, age 0, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

late 200 × lapsed × no wish
    200 new, fwd=miss; fwd-status=200; stored; detail=proved, age 0, 1 asked
    then 200 new, hit; ttl=299, age 1, 0 asked

giant body × nothing kept × no wish
    200 new, fwd=bypass; detail=too-large, 2 asked
    then 200 next, fwd=bypass; detail=too-large, 1 asked

giant body × stale × no wish
    200 old, hit; ttl=-100; detail=revalidating, age 400, 1 asked
    then 200 next, fwd=bypass; detail=too-large, 1 asked

giant body in chunks × unproved, nothing kept × no wish
    200 new, fwd=bypass; detail=too-large, 2 asked
    then 200 next, fwd=bypass; detail=too-large, 1 asked
";
