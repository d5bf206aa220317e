//! The most important cells, written by hand. The first line names behaviour × state × request directives. Then come
//! the response, the response to the next request a second later, when upstream has recovered, and, if that is a hit
//! during a backoff, the response at its end.
//!
//! Bodies: `old` was stored before, `before` was sent a second before, `new` is upstream's response now and `cut` its
//! beginning, `next` is upstream's response afterwards, `own` is an error of the gateway.

pub(super) const CELLS: &str = "
200 × no grant, empty × no directives
    200 new, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

200 × no grant, fresh × no directives
    200 new, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

200 × no grant, fresh × only-if-cached
    504 own only-if-cached, no Cache-Status, calls 0
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

200 × empty × no directives
    200 new, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

200 × fresh × no directives
    200 old, hit; ttl=200, age 100, calls 0
    then 200 old, hit; ttl=199, age 101, calls 0

200 × fresh × no-cache
    200 new, fwd=request; fwd-status=200; stored; detail=client-no-cache, age 0, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

200 × fresh × max-age=50
    200 new, fwd=request; fwd-status=200; stored; detail=client-max-age, age 0, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

200 × fresh × no-store
    200 new, fwd=bypass; detail=client-no-store, calls 1
    then 200 old, hit; ttl=199, age 101, calls 0

200 × fresh × if-none-match
    304 empty, hit; ttl=200, age 100, calls 0
    then 200 old, hit; ttl=199, age 101, calls 0

200 × stale × no directives
    200 old, hit; ttl=-100; detail=revalidating, age 400, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

200 × stale × only-if-cached
    200 old, hit; ttl=-100; detail=revalidating, age 400, calls 0
    then 200 old, hit; ttl=-101; detail=revalidating, age 401, calls 1

200 × stale × if-none-match
    304 empty, hit; ttl=-100; detail=revalidating, age 400, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

200 × long stale × no directives
    200 new, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

200 × long stale × only-if-cached
    504 own only-if-cached, no Cache-Status, calls 0
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

200 × long stale, backoff × no directives
    200 old, hit; ttl=-700; detail=backoff, age 1000, calls 0
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, calls 0
    after 4 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

200 × long stale, backoff × no-cache
    200 new, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

200 × long stale, negative × no directives
    404 before, hit; ttl=4; detail=negative, age 1, calls 0
    then 404 before, hit; ttl=3; detail=negative, age 2, calls 0

200 × long stale, negative × no-cache
    200 new, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

200 × expired × no directives
    200 new, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

200 × lapsed × no directives
    200 new, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

200 × lapsed × only-if-cached
    504 own only-if-cached, no Cache-Status, calls 0
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

200 × denied × no-cache
    401 before, hit; ttl=1; detail=denied, age 1, calls 0
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

200 × denied × no-store
    200 new, fwd=bypass; detail=client-no-store, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

1xx, then 200 × empty × no directives
    200 new, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

200 no-store × no grant, fresh × no directives
    200 new, fwd=miss; fwd-status=200; detail=cache-directives, age 0, calls 1
    then 200 old, hit; ttl=199, age 101, calls 0

200 no-store × stale × no directives
    200 old, hit; ttl=-100; detail=revalidating, age 400, calls 1
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

200 no-store × lapsed × no directives
    200 new, fwd=miss; fwd-status=200; detail=cache-directives, age 0, calls 1
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

200 max-age=0 × empty × no directives
    200 new, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, calls 1
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

200 with HTML × empty × no directives
    200 new, fwd=miss; fwd-status=200; detail=not-json, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=uncacheable, age 0, calls 1

200 with HTML × long stale × no directives
    200 new, fwd=stale; fwd-status=200; detail=not-json, calls 1
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

200 with error_code × no grant, fresh × no directives
    200 new, fwd=miss; fwd-status=200; detail=not-products, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

200 with error_code × fresh × no-cache
    200 new, fwd=request; fwd-status=200; detail=not-products, calls 1
    then 200 old, hit; ttl=199, age 101, calls 0

Content-Length too short × expired × no directives
    200 new, fwd=stale; fwd-status=200; detail=not-json, calls 1
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

204 × stale × no directives
    200 old, hit; ttl=-100; detail=revalidating, age 400, calls 1
    then 200 old, hit; ttl=-101; detail=revalidating, age 401, calls 1

301 × empty × no directives
    301 new, fwd=miss; fwd-status=301; detail=status, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, calls 1

304 × long stale with ETag × no directives
    200 old, fwd=stale; fwd-status=304; stored; detail=expired, age 0, calls 1
    then 200 old, hit; ttl=299, age 1, calls 0

304 × expired with ETag × if-none-match
    304 empty, fwd=stale; fwd-status=304; stored; detail=expired, age 0, calls 1
    then 200 old, hit; ttl=299, age 1, calls 0

304 × long stale × no directives
    200 old, fwd=stale; detail=broken, age 1000, calls 1
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, calls 0
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

304 × empty × no directives
    502 own broken, fwd=miss; detail=broken, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, calls 1

304 of another ETag × long stale with ETag × no directives
    200 old, fwd=stale; detail=broken, age 1000, calls 1
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, calls 0
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

400 × long stale × no directives
    400 new, fwd=stale; fwd-status=400; stored; detail=expired, calls 1
    then 400 new, hit; ttl=4; detail=negative, age 1, calls 0

404 × stale × no directives
    200 old, hit; ttl=-100; detail=revalidating, age 400, calls 1
    then 404 new, hit; ttl=4; detail=negative, age 1, calls 0

404 × no grant, empty × no directives
    404 new, fwd=miss; fwd-status=404; detail=status, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

405 × expired × no directives
    405 new, fwd=stale; fwd-status=405; stored; detail=expired, calls 1
    then 405 new, hit; ttl=4; detail=negative, age 1, calls 0

401 × fresh × no-cache
    401 new, fwd=request; fwd-status=401; detail=denied, calls 1
    then 401 new, hit; ttl=1; detail=denied, age 1, calls 0

401 × stale × no directives
    200 old, hit; ttl=-100; detail=revalidating, age 400, calls 1
    then 401 new, hit; ttl=1; detail=denied, age 1, calls 0

403 × no grant, fresh × no directives
    403 new, fwd=miss; fwd-status=403; detail=denied, calls 1
    then 403 new, hit; ttl=1; detail=denied, age 1, calls 0

401 × lapsed × no directives
    401 new, fwd=miss; fwd-status=401; detail=denied, calls 1
    then 401 new, hit; ttl=1; detail=denied, age 1, calls 0

401 × fresh × no-store
    401 new, fwd=bypass; detail=client-no-store, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

494 × long stale × no directives
    494 new, fwd=stale; fwd-status=494; detail=status, calls 1
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

429 × no grant, fresh × no directives
    429 new, fwd=miss; fwd-status=429; detail=status, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

429 Retry-After: seconds × long stale × no directives
    200 old, fwd=stale; fwd-status=429; detail=status, age 1000, calls 1
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, calls 0
    after 30 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

429 Retry-After: date × stale × no directives
    200 old, hit; ttl=-100; detail=revalidating, age 400, calls 1
    then 200 old, hit; ttl=-101; detail=backoff, age 401, calls 0
    after 30 s 200 old, hit; ttl=-130; detail=revalidating, age 430, calls 1

429 Retry-After: garbage × lapsed × no directives
    200 old, fwd=stale; fwd-status=429; detail=status, age 400, calls 1
    then 200 old, hit; ttl=-101; detail=backoff, age 401, calls 0
    after 5 s 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

429 Retry-After: seconds × expired × no directives
    429 new, fwd=stale; fwd-status=429; detail=status, calls 1
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

500 × fresh × no directives
    200 old, hit; ttl=200, age 100, calls 0
    then 200 old, hit; ttl=199, age 101, calls 0

500 × fresh × no-cache
    200 old, fwd=request; fwd-status=500; detail=status, age 100, calls 1
    then 200 old, hit; ttl=199, age 101, calls 0

500 × stale × no directives
    200 old, hit; ttl=-100; detail=revalidating, age 400, calls 1
    then 200 old, hit; ttl=-101; detail=backoff, age 401, calls 0
    after 5 s 200 old, hit; ttl=-105; detail=revalidating, age 405, calls 1

500 × long stale, negative × no-cache
    200 old, fwd=stale; fwd-status=500; detail=status, age 1000, calls 1
    then 404 before, hit; ttl=3; detail=negative, age 2, calls 0

502 × lapsed × no directives
    200 old, fwd=stale; fwd-status=502; detail=status, age 400, calls 1
    then 200 old, hit; ttl=-101; detail=backoff, age 401, calls 0
    after 5 s 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

503 × long stale × max-age=50
    200 old, fwd=stale; fwd-status=503; detail=status, age 1000, calls 1
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, calls 0
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

503 Retry-After: an hour × stale × no directives
    200 old, hit; ttl=-100; detail=revalidating, age 400, calls 1
    then 200 old, hit; ttl=-101; detail=backoff, age 401, calls 0
    after 60 s 200 old, hit; ttl=-160; detail=revalidating, age 460, calls 1

504 × expired × no directives
    504 new, fwd=stale; fwd-status=504; detail=status, calls 1
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

504 × no grant, fresh × no directives
    504 new, fwd=miss; fwd-status=504; detail=status, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

401 cut off × fresh × no-cache
    401 own refusal-incomplete, fwd=request; detail=refusal-incomplete, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

401 cut off × stale × no directives
    200 old, hit; ttl=-100; detail=revalidating, age 400, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

connection refused × empty × no directives
    502 own connect, fwd=miss; detail=connect, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, calls 1

connection refused × long stale × no directives
    200 old, fwd=stale; detail=connect, age 1000, calls 1
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, calls 0
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

name not resolved × stale × no directives
    200 old, hit; ttl=-100; detail=revalidating, age 400, calls 1
    then 200 old, hit; ttl=-101; detail=backoff, age 401, calls 0
    after 5 s 200 old, hit; ttl=-105; detail=revalidating, age 405, calls 1

TLS fails × lapsed × no directives
    200 old, fwd=stale; detail=tls, age 400, calls 1
    then 200 old, hit; ttl=-101; detail=backoff, age 401, calls 0
    after 5 s 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

reset before the head × empty × no directives
    502 own broken, fwd=miss; detail=broken, calls 2
    then 200 next, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, calls 1

reset before the head × long stale × no directives
    200 old, fwd=stale; detail=broken, age 1000, calls 2
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, calls 0
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

reset before the head × stale × no-store
    502 own broken, fwd=bypass; detail=client-no-store; failure=broken, calls 2
    then 200 old, hit; ttl=-101; detail=revalidating, age 401, calls 1

reset mid-body × long stale × no directives
    200 old, fwd=stale; detail=broken, age 1000, calls 1
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, calls 0
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

reset mid-body × fresh × no-store
    200 cut, fwd=bypass; detail=client-no-store, calls 1
    then 200 old, hit; ttl=199, age 101, calls 0

chunks cut off × no grant, empty × no directives
    502 own broken, fwd=miss; detail=broken, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

Content-Length too long × expired × no directives
    502 own broken, fwd=stale; detail=broken, calls 1
    then 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

giant head × long stale × if-none-match
    304 empty, fwd=stale; detail=broken, age 1000, calls 1
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, calls 0
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

garbage × stale × only-if-cached
    200 old, hit; ttl=-100; detail=revalidating, age 400, calls 0
    then 200 old, hit; ttl=-101; detail=revalidating, age 401, calls 1

garbage × long stale × no directives
    200 old, fwd=stale; detail=broken, age 1000, calls 1
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, calls 0
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

slow head × long stale × no directives
    200 old, fwd=stale; detail=first-byte, age 1000, calls 1
    then 200 old, hit; ttl=-701; detail=backoff, age 1001, calls 0
    after 5 s 200 next, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1

slow head × empty × no directives
    504 own first-byte, fwd=miss; detail=first-byte, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=no-entry, age 0, calls 1

slow body × lapsed × no directives
    200 old, fwd=stale; detail=timeout, age 400, calls 1
    then 200 old, hit; ttl=-101; detail=backoff, age 401, calls 0
    after 5 s 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

slow body × no grant, empty × no directives
    504 own timeout, fwd=miss; detail=timeout, calls 1
    then 200 next, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1

late 200 × long stale × no directives
    200 old, fwd=stale; detail=stale-if-slow, age 1000, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

late 200 × long stale × no-cache
    200 new, fwd=stale; fwd-status=200; stored; detail=expired, age 0, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

late 200 × lapsed × no directives
    200 new, fwd=miss; fwd-status=200; stored; detail=proved, age 0, calls 1
    then 200 new, hit; ttl=299, age 1, calls 0

giant body × empty × no directives
    200 new, fwd=bypass; detail=too-large, calls 2
    then 200 next, fwd=bypass; detail=too-large, calls 1

giant body × stale × no directives
    200 old, hit; ttl=-100; detail=revalidating, age 400, calls 1
    then 200 next, fwd=bypass; detail=too-large, calls 1

giant body in chunks × no grant, empty × no directives
    200 new, fwd=bypass; detail=too-large, calls 2
    then 200 next, fwd=bypass; detail=too-large, calls 1
";
