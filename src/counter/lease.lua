-- Keygate, counters, version 1. One call charges every limit of a key and of its workspace, all of them or none.
--
-- KEYS  the key's hash, [the workspace's hash]. Both share one hash tag.
-- ARGV  node, server ('': ask), life_us, lag_us, nodes, need, have, ahead, in_flight (-1: no such limit), ahead_places,
--       max_places, others_owe, n, n times {at_us, units}  what is given back (negative) or was spent without us; others_owe:
--                    what other keys of the workspace spent on that node without us, of which we may not have heard
--       per subject: known (0 or 1), if 1: at_us, used of minute hour day month total           from the ledger
--                    heard (0 or 1), if 1: epoch, at_us, used of the same                       what we once told this node
--                    n, n times {'b', slot, rate, burst} or {'w', window, max}
--
-- Fields of a subject: v = layout, g = when it was made (µs), e = its epoch: since when this server counts it (µs), r = which
-- server that is, s1…s5 = starts of its windows (s), u1…u5 = used in them, b1…b5 = how much of that is known from before the
-- epoch, f0 f1 = when the bucket is full again, e0 e1 = until when units leased ahead may still be spent (ticks),
-- q0 q1 = the bucket's f again, the ticks in which a unit refilled when it was charged last, when that was, and when a grant
-- last found it full or nearly so: what was charged refills at the rate in force. Not believed where f is another.
-- a = the same of the window before each of the first four, p:NODE = places in flight of a node and until when they are
-- believed (µs).
--
-- The clock may step back. What it wrote while it was ahead is believed to be as late as it can be now: an instant that lies
-- further ahead than any that is written now would refuse all until the clock gets there.
--
-- Scripts of other versions share these fields, so that two versions side by side count together. A new layout gets
-- a new number, and a script that does not know it touches nothing.
--
-- A tick is 1/16 µs since 2025: fine enough for 160 000 units/s, and exact in a double until 2042.
local LAYOUT, TICKS, EPOCH_S, SUBJECT_MS, PLACE_US = '1', 16, 1735689600, 172800000, 5000000
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min

local t = redis.call('TIME')
local now_us = t[1] * 1000000 + t[2]
local now = (t[1] - EPOCH_S) * 1000000 * TICKS + t[2] * TICKS

local function ticks_of(us) return (us - EPOCH_S * 1000000) * TICKS end

local cursor = 0
local function next_text() cursor = cursor + 1; return ARGV[cursor] end
local function next_number() cursor = cursor + 1; return tonumber(ARGV[cursor]) end
local function whole(n) return string.format('%.0f', n) end

-- The first day of the month of a day, both counted since 1970 (Hinnant's days-to-civil).
local function month_start(day)
  local z = day + 719468
  local doe = z - floor(z / 146097) * 146097
  local yoe = floor((doe - floor(doe / 1460) + floor(doe / 36524) - floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + floor(yoe / 4) - floor(yoe / 100))
  local mp = floor((5 * doy + 2) / 153)
  return day - (doy - floor((153 * mp + 2) / 5))
end

local function starts_of(us)
  local s = floor(us / 1000000)
  local day = floor(s / 86400)
  return { s - s % 60, s - s % 3600, day * 86400, month_start(day) * 86400, 0 }
end

local function ends_of(starts)
  return { starts[1] + 60, starts[2] + 3600, starts[3] + 86400, month_start(starts[4] / 86400 + 32) * 86400 }
end

-- === what is asked ===

local node, server, life_us, lag_us, nodes = next_text(), next_text(), next_number(), next_number(), next_number()
local need, have, ahead = next_number(), next_number(), next_number()
local in_flight, ahead_places, max_places, others_owe = next_number(), next_number(), next_number(), next_number()
local life = life_us * TICKS
local adjustments = {}
for i = 1, next_number() do
  local at, units = next_number(), next_number()
  -- Nothing has been spent later than now.
  adjustments[i] = { at = units > 0 and min(at, now_us) or at, units = units }
end

local starts = starts_of(now_us)
local FIELDS = { 'v', 'g', 'e', 'r', 's1', 'u1', 'b1', 's2', 'u2', 'b2', 's3', 'u3', 'b3', 's4', 'u4', 'b4', 's5', 'u5', 'b5',
  'f0', 'e0', 'f1', 'e1', 'a', 'q0', 'q1' }
if server == '' then
  local info = redis.pcall('INFO', 'server')
  server = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or '-'
end

-- What was used of the window before the newest, for each but the last.
local function earlier_of(text, began)
  local earlier, next_of = {}, string.gmatch(text or '', '%d+')
  for w = 1, 4 do
    local start, used, before = tonumber(next_of() or 0), tonumber(next_of() or 0), tonumber(next_of() or 0)
    earlier[w] = { start = start, used = used, before = began and used or before }
  end
  return earlier
end

-- Which window counts now: the newest, unless the clock has stepped back out of it. Then it is the one before, if there has
-- been one; else the later goes on counting, because nobody knows what was used of the earlier.
local function counting(subject, w, newest, text, began)
  if newest.start == starts[w] then return newest, newest end
  subject.earlier = subject.earlier or earlier_of(text, began)
  local earlier = subject.earlier[w]
  if newest.start < starts[w] then
    subject.earlier[w] = newest
    newest = { start = starts[w], used = 0, before = 0 }
    return newest, newest
  end
  if earlier.start == 0 then return newest, newest end
  if earlier.start < starts[w] then earlier.start, earlier.used, earlier.before = starts[w], 0, 0 end
  return newest, earlier
end

-- What there is of a subject; nothing if there is none and the ledger was not asked.
local function read(hash, ledger)
  local v = redis.call('HMGET', hash, unpack(FIELDS))
  local subject = { hash = hash, newest = {}, windows = {}, full = {}, leased = {}, limits = {}, step = {}, at = {}, low = {}, as_found = {} }
  subject.layout, subject.made, subject.epoch = v[1], tonumber(v[2]), tonumber(v[3])
  if not subject.made then
    if not ledger then return nil end
    subject.layout, subject.made, v = LAYOUT, now_us, {}
    local at = starts_of(ledger.at)
    for w = 1, 5 do v[2 + 3 * w], v[3 + 3 * w], v[4 + 3 * w] = at[w], ledger.used[w], ledger.used[w] end
  end
  subject.made = min(subject.made, now_us)
  -- Another server took over, or this one came back with what it had on disk: some of what was told may be missing.
  local began = v[4] ~= server
  if began then subject.epoch = now_us end
  for w = 1, 5 do
    local newest = { start = tonumber(v[2 + 3 * w] or 0), used = tonumber(v[3 + 3 * w] or 0) }
    newest.before = began and newest.used or tonumber(v[4 + 3 * w] or 0)
    subject.newest[w], subject.windows[w] = counting(subject, w, newest, v[24], began)
  end
  for b = 0, 1 do
    subject.full[b], subject.leased[b] = tonumber(v[20 + 2 * b] or 0), min(tonumber(v[21 + 2 * b] or 0), now + life)
    local full, step, at, low = string.match(v[25 + b] or '', '^(%d+) (%d+) (%d+) (%d+)$')
    if full and tonumber(full) == subject.full[b] and tonumber(step) > 0 then
      subject.step[b], subject.at[b], subject.low[b] = tonumber(step), min(tonumber(at), now), min(tonumber(low), now)
      subject.as_found[b] = tonumber(at) <= now
    end
  end
  return subject
end

local function next_spending()
  local spending = { at = next_number(), used = {} }
  for w = 1, 5 do spending.used[w] = next_number() end
  return spending
end

local subjects = {}
for i = 1, #KEYS do
  local ledger = next_number() == 1 and next_spending() or nil
  local subject = read(KEYS[i], ledger)
  if not subject then return { 2, i, now_us } end
  if subject.layout ~= LAYOUT then return redis.error_reply('KEYGATE layout ' .. tostring(subject.layout)) end
  if next_number() == 1 then
    local epoch = next_number()
    local heard = next_spending()
    if epoch ~= subject.epoch then subject.heard = heard end
  end
  local emptiest = {}
  for l = 1, next_number() do
    local kind, slot, a = next_text(), next_number(), next_number()
    if kind == 'b' then
      -- A rate of nothing has no step; no charge is ever small enough for it.
      local step = a > 0 and ceil(1000000 * TICKS / a) or 2 ^ 52
      subject.limits[l] = { bucket = slot, step = step, burst = next_number() }
      local before, at = subject.step[slot], subject.at[slot] or now
      if before then
        local debt = max(0, subject.full[slot] - at)
        if before ~= step then debt = ceil(debt * step / before) end
        subject.full[slot] = at + debt
      end
      subject.step[slot] = step
      emptiest[slot] = max(emptiest[slot] or 0, at + subject.limits[l].burst * step)
    else
      subject.limits[l] = { window = slot, max = a }
    end
  end
  for b, full in pairs(emptiest) do subject.full[b] = min(subject.full[b], full) end
  subject.owed = i == 2 and others_owe or 0
  subjects[i] = subject
end

-- === what was spent or given back elsewhere ===

-- What is older than the hash was counted where that came from: in the ledger, or never. What is hardly older may be in
-- it or not, and counts: once too often is better than not at all.
local function is_old(subject, adjustment)
  return adjustment.at < subject.made - (adjustment.units > 0 and lag_us or 0)
end

-- What a node was told before this epoch was debited, whatever became of the server that did it. The highest such word
-- holds: whoever was told last was told of everything.
local function believe(subject)
  if not subject.heard then return end
  local heard_starts = starts_of(subject.heard.at)
  for w, window in ipairs(subject.windows) do
    if heard_starts[w] == window.start then
      local word = subject.heard.used[w]
      for _, adjustment in ipairs(adjustments) do
        if is_old(subject, adjustment) and starts_of(adjustment.at)[w] == window.start then
          word = word + adjustment.units
        end
      end
      local missing = max(0, word - window.before)
      window.used, window.before = window.used + missing, window.before + missing
    end
  end
end

local function adjust(subject, adjustment)
  if is_old(subject, adjustment) then return end
  local at, units = adjustment.at, adjustment.units
  local then_starts = starts_of(at)
  for w, window in ipairs(subject.windows) do
    if then_starts[w] ~= window.start then window = subject.newest[w] end
    if then_starts[w] == window.start then window.used = max(0, window.used + units) end
  end
  if units < 0 and now_us - at <= life_us then
    for _, limit in ipairs(subject.limits) do
      -- What time has refilled since is not given back again.
      local low = limit.bucket and subject.low[limit.bucket] or 0
      if limit.bucket and low <= ticks_of(at) then
        subject.full[limit.bucket] = max(0, subject.full[limit.bucket] + units * limit.step)
        subject.as_found[limit.bucket] = nil
      end
    end
  end
end

for _, subject in ipairs(subjects) do believe(subject) end
for _, adjustment in ipairs(adjustments) do
  for _, subject in ipairs(subjects) do adjust(subject, adjustment) end
end

-- === how much there is ===

-- While units leased ahead may be unspent, the bucket fills only to what it holds less what refills during a lease:
-- then whatever is spent late, no stretch of time sees more than burst + rate × time.
local function base(subject, limit, leasing)
  local leased_until = leasing and now or min(now, subject.leased[limit.bucket])
  return max(subject.full[limit.bucket], now, leased_until + life)
end

local function available(subject, limit, leasing)
  if limit.window then return max(0, limit.max - subject.windows[limit.window].used - subject.owed) end
  return max(0, floor((now + limit.burst * limit.step - base(subject, limit, leasing)) / limit.step))
end

local own_place, dead = 'p:' .. node, {}
local others = 0
if in_flight >= 0 then
  local held = redis.call('HGETALL', KEYS[1])
  for i = 1, #held, 2 do
    local count, until_us = string.match(held[i + 1], '^(%d+) (%d+)$')
    if count and string.sub(held[i], 1, 2) == 'p:' then
      if tonumber(until_us) <= now_us then
        dead[#dead + 1] = held[i]
      elseif held[i] ~= own_place then
        others = others + tonumber(count)
        if tonumber(until_us) > now_us + PLACE_US then
          redis.call('HSET', KEYS[1], held[i], count .. ' ' .. whole(now_us + PLACE_US))
        end
      end
    end
  end
end
local free_places = in_flight >= 0 and max(0, max_places - others - in_flight) or 2 ^ 52

local requests = min(need, free_places)
for _, subject in ipairs(subjects) do
  for _, limit in ipairs(subject.limits) do
    requests = min(requests, available(subject, limit, false) + have)
  end
end

-- === the worst reason to refuse: index, µs to wait; -1 never, -2 when a request ends ===

local why, wait = 0, -3
local function worse(index, candidate)
  local rank = candidate == -1 and math.huge or candidate
  local current = wait == -1 and math.huge or wait
  if rank > current then why, wait = index, candidate end
end
if need > 0 and requests < 1 then
  local window_ends = ends_of(starts)
  local index = 0
  for _, subject in ipairs(subjects) do
    for _, limit in ipairs(subject.limits) do
      index = index + 1
      if available(subject, limit, false) + have < 1 then
        if limit.window then
          local ends = window_ends[limit.window]
          worse(index, (ends and limit.max > 0) and max(1, ends * 1000000 - now_us) or -1)
        else
          local over = base(subject, limit, false) + limit.step - (now + limit.burst * limit.step)
          worse(index, limit.burst > 0 and limit.step < 2 ^ 52 and max(1, ceil(over / TICKS)) or -1)
        end
      end
    end
  end
  if free_places < 1 then worse(0, max_places > 0 and -2 or -1) end
end

-- === take ===

local extra = 0
if ahead > 0 and requests == need and why == 0 and wait == -3 then
  extra = ahead
  local paid = max(0, requests - have)
  for _, subject in ipairs(subjects) do
    for _, limit in ipairs(subject.limits) do
      local left = available(subject, limit, true) - paid
      -- Near the end of a window the leases shrink, so that no node sits on the last units.
      extra = min(extra, limit.window and floor(left / (2 * nodes)) or left)
    end
  end
  extra = max(0, extra)
end
local granted = max(0, requests - have) + extra

for _, subject in ipairs(subjects) do
  if granted > 0 then
    for _, limit in ipairs(subject.limits) do
      if limit.bucket then
        if subject.full[limit.bucket] < now + limit.step then subject.low[limit.bucket] = now end
        subject.at[limit.bucket], subject.as_found[limit.bucket] = now, nil
        subject.full[limit.bucket] = base(subject, limit, extra > 0) + granted * limit.step
        if extra > 0 then subject.leased[limit.bucket] = max(subject.leased[limit.bucket], now + life) end
      end
    end
    for _, window in ipairs(subject.windows) do window.used = window.used + granted end
  end
  local out = { 'v', LAYOUT, 'g', whole(subject.made), 'e', whole(subject.epoch), 'r', server }
  for w, window in ipairs(subject.newest) do
    out[#out + 1] = 's' .. w; out[#out + 1] = whole(window.start)
    out[#out + 1] = 'u' .. w; out[#out + 1] = whole(window.used)
    out[#out + 1] = 'b' .. w; out[#out + 1] = whole(window.before)
  end
  if subject.earlier then
    local texts = {}
    for w, window in ipairs(subject.earlier) do
      texts[w] = whole(window.start) .. ' ' .. whole(window.used) .. ' ' .. whole(window.before)
    end
    out[#out + 1] = 'a'; out[#out + 1] = table.concat(texts, ' ')
  end
  for b = 0, 1 do
    out[#out + 1] = 'e' .. b; out[#out + 1] = whole(subject.leased[b])
    if not subject.as_found[b] then
      out[#out + 1] = 'f' .. b; out[#out + 1] = whole(subject.full[b])
      out[#out + 1] = 'q' .. b
      out[#out + 1] = whole(subject.full[b]) .. ' ' .. whole(subject.step[b] or 0) .. ' '
        .. whole(subject.at[b] or now) .. ' ' .. whole(subject.low[b] or 0)
    end
  end
  redis.call('HSET', subject.hash, unpack(out))
  redis.call('PEXPIRE', subject.hash, SUBJECT_MS)
end

local held_places = 0
if in_flight >= 0 then
  local spare = max(0, free_places - requests)
  held_places = in_flight + requests + min(ahead_places, floor(spare / (2 * nodes)))
  if held_places > 0 then
    redis.call('HSET', KEYS[1], own_place, whole(held_places) .. ' ' .. whole(now_us + PLACE_US))
  else
    dead[#dead + 1] = own_place
  end
  if #dead > 0 then redis.call('HDEL', KEYS[1], unpack(dead)) end
end

-- === answer ===

local refused = need > 0 and requests < 1
local answer = { refused and 1 or 0, now_us, granted, held_places, max(0, max_places - others - held_places), why, wait }
for _, subject in ipairs(subjects) do
  answer[#answer + 1] = subject.made
  answer[#answer + 1] = subject.epoch
  for _, window in ipairs(subject.windows) do answer[#answer + 1] = window.used end
  for _, limit in ipairs(subject.limits) do
    if limit.bucket then
      answer[#answer + 1] = available(subject, limit, false)
      answer[#answer + 1] = max(0, ceil((subject.full[limit.bucket] - now) / TICKS))
    end
  end
end
return answer
