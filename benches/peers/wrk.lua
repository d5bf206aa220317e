-- The requests of wrk: GETs of a path with a token. The environment (see load.py) says how they differ: by key, by
-- caller, or by a unique number, in the key (for misses) or in a header. What does not differ is prepared before the
-- first request. Signed requests are put together from what signed.py has written.

local function number(name) return tonumber(os.getenv("PEERS_" .. name)) end

local signed = os.getenv("PEERS_SIGNED")

local function prepare_signed()
  local file = assert(io.open(signed, "rb"))
  local records = file:read("*a")
  file:close()
  -- Question, date, access key and signature.
  local pattern = "^(.*)@QUESTION@(.*)@DATE@(.*)@ACCESS@(.*)@SIGNATURE@(.*)$"
  local head = os.getenv("PEERS_SIGNED_HEAD")
  local target, version, authorization, names, rest = head:match(pattern)
  local from, width = 0, 4 + 16 + 13 + 64

  function request()
    local text = target .. records:sub(from + 1, from + 4) .. version .. records:sub(from + 5, from + 20)
      .. authorization .. records:sub(from + 21, from + 33) .. names .. records:sub(from + 34, from + width) .. rest
    from = (from + width) % #records
    return text
  end
end

local function prepare_token()
  local path, fresh, traced = os.getenv("PEERS_PATH"), os.getenv("PEERS_FRESH"), os.getenv("PEERS_TRACED")
  local keys, callers = number("KEYS"), number("CALLERS")
  local filler = string.rep("t", number("TOKEN_BYTES") - 8)

  local function token(caller) return filler .. string.format("%08d", caller) end
  local function target(key) return path .. "?product_id=" .. key end

  -- Without a function `request`, wrk sends this request and does not call Lua again.
  wrk.path = target(0)
  wrk.headers["X-Auth-Token"] = token(0)
  wrk.headers["If-None-Match"] = os.getenv("PEERS_TAG")

  if fresh or traced then
    local before, after, count = nil, nil, 0

    function init()
      local fields = " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\nX-Auth-Token: " .. token(0) .. "\r\n"
      if fresh then
        before, after = "GET " .. target(fresh) .. "-", fields .. "\r\n"
      else
        before, after = "GET " .. target(0) .. fields .. "Traceparent: ", "\r\n\r\n"
      end
    end

    function request()
      count = count + 1
      return before .. count .. after
    end
  elseif keys > 1 or callers > 1 then
    -- Request i has key i and caller i, in an order that is no order, and the same each time.
    local requests, count = {}, 0

    function init()
      for i = 1, math.max(keys, callers) do
        local headers = { ["X-Auth-Token"] = token((i - 1) % callers) }
        requests[i] = wrk.format("GET", target((i - 1) % keys), headers)
      end
      math.randomseed(6)
      for i = #requests, 2, -1 do
        local other = math.random(i)
        requests[i], requests[other] = requests[other], requests[i]
      end
    end

    function request()
      count = count % #requests + 1
      return requests[count]
    end
  end
end

if signed then prepare_signed() else prepare_token() end

-- wrk itself prints only a rounded number.
function done(summary) io.write(string.format("bytes: %d\n", summary.bytes)) end
