-- Keygate, shared counters, layout 3. One call reports what a node holds of some subjects of one workspace, and grants it more.
-- docs/explanation/redis.md describes the protocol.
--
-- KEYS  a hash for each pool: one measure of one subject. All share one hash tag.
-- ARGV  node, server ('': ask INFO), nodes, life_us, promise_us, lag_us, lost_us (0: this node did not just reconnect),
--       start_s and end_s (0: never) of minute hour day week month total,
--       per pool:    seq, epoch (0: none), waiting (units for waiting requests), need (those beyond granted ones), ahead,
--                    leaves (0 or 1),
--                    of each window: since, spent, told, heard, held
--                    returned, returned_at_us
--                    n, n times {at_us, units}                      spent without Redis or settled, not reported yet
--                    ledger (0 or 1), if 1: used of each window
--                    holds (0 or 1), if 1: least (units for the waiting request that needs least), holds of each window
--                    in_flight (-1: no such limit), ahead_places, max_places
--                    n, n times {'b', slot, rate, burst} or {'w', window, max}
--
-- Answer  {0, now_us, per pool: {status, epoch, granted, why, wait_us, places, places_left, 6 promises, 6 used,
--         if holds: 6 on hold, per bucket: available, full_in_us}} or {3, now_us}: these are not the current windows, nothing was
--         done.
-- Status  0 granted; 1 refused: why = index of the limit (0: in flight), wait_us (-1 never, -2 when a request ends);
--         2 unknown, the ledger's totals are needed; 4 counted, nothing is granted yet; 5 an older call, nothing was done;
--         6 not a hash; 7 unknown layout.
--
-- A tick is 1/16 us since 2025: fine enough for 160 000 units/s, and exact in a double until 2042.
local LAYOUT, TICKS, EPOCH_S, SUBJECT_MS = '3', 16, 1735689600, 172800000
local PLACE_US, HOLD_US, RECORD_US = 5000000, 1000000, 3600000000
local WINDOWS = 6
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min

local t = redis.call('TIME')
local now_us = t[1] * 1000000 + t[2]
local now = (t[1] - EPOCH_S) * 1000000 * TICKS + t[2] * TICKS
local function ticks_of(us) return (us - EPOCH_S * 1000000) * TICKS end

local cursor = 0
local function next_text() cursor = cursor + 1; return ARGV[cursor] end
local function next_number() cursor = cursor + 1; return tonumber(ARGV[cursor]) end
local function whole(n) return string.format('%.0f', n) end

local node, server, nodes = next_text(), next_text(), next_number()
local life_us, promise_us, lag_us, lost_us = next_number(), next_number(), next_number(), next_number()
-- Promises from before nodes lost this server stay reserved until these nodes can have reported.
local kept_us = lost_us > 0 and min(lost_us, now_us) or now_us
local life = life_us * TICKS
local starts, ends = {}, {}
for w = 1, WINDOWS do
  local from_s, until_s = next_number(), next_number()
  starts[w], ends[w] = from_s, until_s
  if now_us < from_s * 1000000 or (until_s > 0 and now_us >= until_s * 1000000) then return { 3, now_us } end
end
local info
if server == '' then
  info = redis.call('INFO', 'server')
  server = string.match(info, 'run_id:(%w+)') or '-'
end

-- A server that has just started may have lost what nodes hold.
local function is_young()
  info = info or redis.call('INFO', 'server')
  return tonumber(string.match(info, 'uptime_in_seconds:(%d+)') or 0) <= HOLD_US / 1000000
end

-- === the call of one pool ===

local function next_ask()
  local ask = { seq = next_number(), epoch = next_number(), waiting = next_number(), need = next_number(), ahead = next_number(), leaves = next_number() == 1, windows = {}, limits = {} }
  for w = 1, WINDOWS do
    ask.windows[w] = { since = next_text(), spent = next_number(), told = next_number(), heard = next_number(), held = next_number() }
  end
  ask.returned, ask.returned_at = next_number(), next_number()
  ask.untold = {}
  for i = 1, next_number() do ask.untold[i] = { at = next_number(), units = next_number() } end
  if next_number() == 1 then
    ask.ledger = {}
    for w = 1, WINDOWS do ask.ledger[w] = next_number() end
  end
  ask.least = 1
  if next_number() == 1 then
    ask.least, ask.holds = next_number(), {}
    for w = 1, WINDOWS do ask.holds[w] = next_number() end
  end
  ask.in_flight, ask.ahead_places, ask.max_places = next_number(), next_number(), next_number()
  for l = 1, next_number() do
    local kind, slot, a = next_text(), next_number(), next_number()
    if kind == 'b' then
      -- A rate of zero has no step; this one refuses every charge.
      ask.limits[l] = { bucket = slot, step = a > 0 and ceil(1000000 * TICKS / a) or 2 ^ 52, burst = next_number() }
    else
      ask.limits[l] = { window = slot, max = a }
    end
  end
  return ask
end

-- === its state ===

-- Whether `window` is the one that counts now: as it is, or as another calendar has it. Then it goes on with the new edges.
local function goes_on(window, w)
  local from, till = starts[w], ends[w]
  if window.start ~= from and not (from < window.till and window.start < till) then return false end
  window.start, window.till = from, till
  return true
end

-- The window that counts now: the newest, unless the clock has stepped back out of it. Then it is the one before, if there is one;
-- otherwise the later one goes on counting, because it is unknown what was used of the earlier one.
local function counting(subject, w)
  local newest, before = subject.newest[w], subject.before[w]
  if goes_on(newest, w) then return newest end
  local fresh = { start = starts[w], till = ends[w], used = 0, known = 0 }
  if newest.start < starts[w] then
    subject.before[w], subject.newest[w] = newest, fresh
    return fresh
  end
  if before.start == 0 then return newest end
  if not goes_on(before, w) and before.start < starts[w] then
    subject.before[w] = fresh
    return fresh
  end
  return before
end

local function window_of(text, began)
  local next_of = string.gmatch(text or '', '%d+')
  local window = {}
  for _, name in ipairs({ 'start', 'till', 'used', 'known' }) do window[name] = tonumber(next_of() or 0) end
  -- Another server took over, or this one restarted from disk: some of what was reported may be missing.
  if began then window.known = window.used end
  return window
end

local function read_bucket(subject, b, text)
  local next_of = string.gmatch(text or '', '%d+')
  local full, leased, step, at, low = next_of(), next_of(), next_of(), next_of(), next_of()
  -- Times written while the clock was ahead are limited to what is possible now.
  subject.buckets[b] = {
    full = tonumber(full or 0), leased = min(tonumber(leased or 0), now + life), step = tonumber(step or 0),
    at = min(tonumber(at or 0), now), low = min(tonumber(low or 0), now),
  }
end

local function read_record(subject, name, text)
  local next_of = string.gmatch(text, '%S+')
  local record = { till = min(tonumber(next_of()), now_us + promise_us), epoch = tonumber(next_of()), seq = tonumber(next_of()) }
  record.windows = {}
  for w = 1, WINDOWS do
    record.windows[w] = { since = next_of(), debited = tonumber(next_of()), reserved = tonumber(next_of()) }
  end
  if subject.holds then
    for w = 1, WINDOWS do record.windows[w].holds = tonumber(next_of() or 0) end
  end
  if record.till + RECORD_US < now_us and name ~= node then
    subject.gone[#subject.gone + 1] = 'n:' .. name
  elseif name == node then
    if record.epoch == subject.epoch then subject.own = record end
  elseif record.till > kept_us then
    subject.others[#subject.others + 1] = record
  end
end

local function read(hash, ask)
  local fields = redis.pcall('HGETALL', hash)
  if fields.err then return nil, 6 end
  local v, records, places = {}, {}, {}
  for i = 1, #fields, 2 do
    local kind, name = string.match(fields[i], '^([np]):(.*)$')
    if kind == 'n' then records[name] = fields[i + 1]
    elseif kind == 'p' then places[name] = fields[i + 1]
    else v[fields[i]] = fields[i + 1] end
  end
  local subject = { hash = hash, newest = {}, before = {}, windows = {}, buckets = {}, others = {}, gone = {}, places = places, holds = ask.holds }
  if #fields == 0 then
    if not ask.ledger then return nil, 2 end
    subject.made, subject.epoch, subject.hold = now_us, now_us, 0
    if ask.epoch ~= 0 or is_young() then subject.hold = now_us + HOLD_US end
    for w = 1, WINDOWS do
      subject.newest[w] = { start = starts[w], till = ends[w], used = ask.ledger[w], known = ask.ledger[w] }
      subject.before[w] = window_of(nil, false)
      subject.windows[w] = subject.newest[w]
    end
    read_bucket(subject, 0); read_bucket(subject, 1)
    return subject
  end
  if v.v ~= LAYOUT then return nil, 7 end
  subject.made, subject.epoch, subject.hold = min(tonumber(v.g), now_us), tonumber(v.e), min(tonumber(v.h), now_us + HOLD_US)
  local began = v.r ~= server
  if began then
    subject.epoch = now_us
    if next(records) then subject.hold = now_us + HOLD_US end
  end
  for w = 1, WINDOWS do
    subject.newest[w], subject.before[w] = window_of(v['w' .. w], began), window_of(v['a' .. w], began)
    subject.windows[w] = counting(subject, w)
  end
  read_bucket(subject, 0, v.b0); read_bucket(subject, 1, v.b1)
  for name, text in pairs(records) do read_record(subject, name, text) end
  return subject
end

-- === what the node has spent ===

-- Units spent without Redis that were in the ledger when the hash was filled.
local function in_ledger(subject, ask, w)
  local units = 0
  for _, untold in ipairs(ask.untold) do
    if untold.at < subject.made - lag_us and untold.at >= starts[w] * 1000000 then units = units + untold.units end
  end
  return units
end

-- The node reports everything it has spent or holds. What it was debited before is in its record, or else it reports the last value
-- it heard. So calls and answers may be lost, and nothing is counted twice.
local function settle(subject, ask)
  for w, window in ipairs(subject.windows) do
    local said, own = ask.windows[w], subject.own and subject.own.windows[w]
    if own and own.since == said.since then
      window.used = max(0, window.used + said.spent - own.debited)
    else
      if ask.epoch ~= 0 and ask.epoch ~= subject.epoch then
        -- The node that was answered last heard of everything: the highest value counts.
        local missing = max(0, said.heard - window.known)
        window.used, window.known = window.used + missing, window.known + missing
      end
      local more = said.spent - said.told
      if more > 0 then more = max(0, more - in_ledger(subject, ask, w)) end
      window.used = max(0, window.used + more)
    end
  end
  if ask.returned > 0 and now_us - ask.returned_at <= 2 * life_us then
    for _, limit in ipairs(ask.limits) do
      local bucket = limit.bucket and subject.buckets[limit.bucket]
      -- What time has refilled since is not refunded again.
      if bucket and bucket.low <= ticks_of(ask.returned_at) then
        bucket.full = max(0, bucket.full - ask.returned * (bucket.step > 0 and bucket.step or limit.step))
        bucket.written = true
      end
    end
  end
end

-- Charged units refill as if the current rate and burst had always applied.
local function scale(subject, ask)
  for _, limit in ipairs(ask.limits) do
    if limit.bucket then
      local bucket = subject.buckets[limit.bucket]
      local debt = max(0, bucket.full - bucket.at)
      if bucket.step > 0 and bucket.step ~= limit.step then debt = ceil(debt * limit.step / bucket.step) end
      bucket.scaled = bucket.at + min(debt, limit.burst * limit.step)
    end
  end
end

-- === what is available ===

-- While units granted in advance may be unspent, the bucket fills only up to its burst less what refills while a unit is valid. So
-- however late units are spent, no interval sees more than burst + rate x time.
local function base(bucket, leasing)
  return max(bucket.scaled, now, (leasing and now or min(now, bucket.leased)) + life)
end

-- The sum over the other nodes of what is reserved for them (holds, and what they may still spend without a call), or of holds.
local function sum_of_others(subject, w, name)
  local units = 0
  for _, other in ipairs(subject.others) do
    if other.till - promise_us >= starts[w] * 1000000 then units = units + other.windows[w][name] end
  end
  return units
end

local function available(subject, ask, limit, leasing)
  if limit.window then
    local w = limit.window
    limit.reserved = limit.reserved or sum_of_others(subject, w, 'reserved')
    return max(0, limit.max - subject.windows[w].used - limit.reserved - (ask.holds and ask.holds[w] or 0))
  end
  local bucket = subject.buckets[limit.bucket]
  return max(0, floor((now + limit.burst * limit.step - base(bucket, leasing)) / limit.step))
end

local function places_of(subject, ask)
  local others, dead = 0, {}
  for name, text in pairs(subject.places) do
    local count, till = string.match(text, '^(%d+) (%d+)$')
    if tonumber(till) <= now_us then
      dead[#dead + 1] = 'p:' .. name
    elseif name ~= node then
      others = others + tonumber(count)
      if tonumber(till) > now_us + PLACE_US then
        redis.call('HSET', subject.hash, 'p:' .. name, count .. ' ' .. whole(now_us + PLACE_US))
      end
    end
  end
  return others, dead
end

-- The refusal with the longest wait: index of the limit, us to wait; -1 never, -2 when a request ends.
local function reason(subject, ask, free_places)
  local why, wait = 0, -3
  local function worse(index, candidate)
    local rank = candidate == -1 and math.huge or candidate
    local current = wait == -1 and math.huge or wait
    if rank > current then why, wait = index, candidate end
  end
  for index, limit in ipairs(ask.limits) do
    if available(subject, ask, limit, false) + ask.waiting - ask.need < ask.least then
      if limit.window then
        local till = ends[limit.window]
        local is_held = ask.holds and subject.windows[limit.window].used + ask.least <= limit.max
        worse(index, is_held and -2 or (till > 0 and limit.max >= ask.least) and max(1, till * 1000000 - now_us) or -1)
      else
        local over = base(subject.buckets[limit.bucket], false) + limit.step - (now + limit.burst * limit.step)
        worse(index, limit.burst > 0 and limit.step < 2 ^ 52 and max(1, ceil(over / TICKS)) or -1)
      end
    end
  end
  if free_places < 1 then worse(0, ask.max_places > 0 and -2 or -1) end
  return why, wait
end

local function text_of(window)
  return whole(window.start) .. ' ' .. whole(window.till) .. ' ' .. whole(window.used) .. ' ' .. whole(window.known)
end

local function write(subject, ask, record)
  local out = { 'v', LAYOUT, 'g', whole(subject.made), 'e', whole(subject.epoch), 'h', whole(subject.hold), 'r', server }
  local function put(name, value) out[#out + 1] = name; out[#out + 1] = value end
  for w = 1, WINDOWS do
    put('w' .. w, text_of(subject.newest[w]))
    if subject.before[w].start > 0 then put('a' .. w, text_of(subject.before[w])) end
  end
  for b = 0, 1 do
    local k = subject.buckets[b]
    put('b' .. b, whole(k.full) .. ' ' .. whole(k.leased) .. ' ' .. whole(k.step) .. ' ' .. whole(k.at) .. ' ' .. whole(k.low))
  end
  local texts = { whole(now_us + promise_us), whole(subject.epoch), whole(ask.seq) }
  for w = 1, WINDOWS do
    local of = record[w]
    texts[w + 3] = of.since .. ' ' .. whole(of.debited) .. ' ' .. whole(of.reserved)
  end
  for w = 1, ask.holds and WINDOWS or 0 do texts[#texts + 1] = whole(ask.holds[w]) end
  put('n:' .. node, table.concat(texts, ' '))
  redis.call('HSET', subject.hash, unpack(out))
  if #subject.gone > 0 then redis.call('HDEL', subject.hash, unpack(subject.gone)) end
  redis.call('PEXPIRE', subject.hash, SUBJECT_MS)
end

-- === one pool ===

local function nothing(status)
  local answer = { status }
  for n = 2, 7 + 2 * WINDOWS do answer[n] = 0 end
  return answer
end

local function serve(hash, ask)
  local subject, trouble = read(hash, ask)
  if trouble then return nothing(trouble) end
  if subject.own and ask.seq <= subject.own.seq then return nothing(5) end
  settle(subject, ask)
  scale(subject, ask)
  local count = max(nodes, #subject.others + 1)
  local part = 2 * count
  local others, dead = 0, {}
  if ask.in_flight >= 0 then others, dead = places_of(subject, ask) end
  local free_places = ask.in_flight >= 0 and max(0, ask.max_places - others - ask.in_flight) or 2 ^ 52

  local held_back = subject.hold > now_us
  local units, extra, status, why, wait = 0, 0, 0, 0, 0
  if held_back then
    status = 4
  else
    units = ask.need
    for _, limit in ipairs(ask.limits) do units = min(units, available(subject, ask, limit, false)) end
    local served = min(ask.waiting - ask.need + units, free_places)
    if ask.waiting > 0 and served < ask.least then
      status, units = 1, 0
      why, wait = reason(subject, ask, free_places)
    elseif ask.ahead > 0 and units == ask.need then
      extra = ask.ahead
      for _, limit in ipairs(ask.limits) do
        local left = available(subject, ask, limit, true) - units
        -- Near the limit, grants in advance shrink, so that no node holds the last units.
        extra = min(extra, limit.window and floor(left / part) or left)
      end
      extra = max(0, extra)
    end
  end
  local granted = units + extra
  if granted > 0 then
    for _, limit in ipairs(ask.limits) do
      if limit.bucket then
        local bucket = subject.buckets[limit.bucket]
        if bucket.scaled < now + limit.step then bucket.low = now end
        bucket.full = base(bucket, extra > 0) + granted * limit.step
        bucket.step, bucket.at, bucket.scaled = limit.step, now, bucket.full
        if extra > 0 then bucket.leased = max(bucket.leased, now + life) end
      end
    end
    -- Units for holds are reserved with them; used are those that were settled.
    for w, window in ipairs(subject.windows) do
      if ask.holds then ask.holds[w] = ask.holds[w] + granted else window.used = window.used + granted end
    end
  end

  local record, promises = {}, {}
  for _, limit in ipairs(ask.limits) do
    if limit.window and not ask.leaves then
      local w, free = limit.window, available(subject, ask, limit, false)
      local promise = held_back and min(free, ask.windows[w].held) or floor(free / part)
      promises[w] = min(promises[w] or promise, promise)
    end
  end
  for w, said in ipairs(ask.windows) do
    local holds = ask.holds and ask.holds[w]
    record[w] = { since = said.since, debited = said.spent + (holds and 0 or granted), reserved = holds or 0 }
    -- Until it receives this answer, it may spend its old promise; the grant is a part of that.
    if promises[w] then record[w].reserved = record[w].reserved + max(said.held - granted, promises[w]) end
    promises[w] = promises[w] or 0
  end
  write(subject, ask, record)

  local places = 0
  if ask.in_flight >= 0 then
    local wanted = status == 0 and min(ask.waiting, free_places) or 0
    local spare = max(0, free_places - wanted)
    places = ask.in_flight + wanted + min(ask.ahead_places, floor(spare / (2 * count)))
    if places > 0 then
      redis.call('HSET', hash, 'p:' .. node, whole(places) .. ' ' .. whole(now_us + PLACE_US))
    else
      dead[#dead + 1] = 'p:' .. node
    end
    if #dead > 0 then redis.call('HDEL', hash, unpack(dead)) end
  end

  local answer = { status, subject.epoch, granted, why, wait, places, max(0, ask.max_places - others - places) }
  for w = 1, WINDOWS do answer[#answer + 1] = promises[w] end
  for w = 1, WINDOWS do answer[#answer + 1] = subject.windows[w].used end
  for w = 1, ask.holds and WINDOWS or 0 do answer[#answer + 1] = ask.holds[w] + sum_of_others(subject, w, 'holds') end
  for _, limit in ipairs(ask.limits) do
    if limit.bucket then
      answer[#answer + 1] = available(subject, ask, limit, false)
      answer[#answer + 1] = max(0, ceil((subject.buckets[limit.bucket].scaled - now) / TICKS))
    end
  end
  return answer
end

local answers = { 0, now_us }
for i = 1, #KEYS do answers[i + 2] = serve(KEYS[i], next_ask()) end
return answers
