-- wrk sends one body again and again: wrk ... -s post.lua URL -- BODY_FILE [HEADER VALUE]...
-- Ends with a line of figures in JSON; latencies in seconds.

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  wrk.method = "POST"
  wrk.body = file:read("*a")
  file:close()
  for index = 2, #arguments, 2 do
    wrk.headers[arguments[index]] = arguments[index + 1]
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  print(string.format(
    'FIGURES {"answers": %d, "wall_s": %.6f, "p50_s": %.6f, "p95_s": %.6f, "p99_s": %.6f, '
      .. '"status": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6,
    latency:percentile(95) / 1e6, latency:percentile(99) / 1e6,
    errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end
