# Sourced by test.sh. `browser` sets CHROMIUM for the tests of the studio: what is on PATH, else Debian's package
# where we may install it, else Playwright's own download. Without one those tests fail and say so.
find_browser() {
  local candidate
  for candidate in "${CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
    if [[ -n "$candidate" ]] && command -v "$candidate"; then return; fi
  done
  candidate="$("$PYTHON" -c 'from playwright.sync_api import sync_playwright as start
with start() as playwright: print(playwright.chromium.executable_path)' 2>/dev/null)"
  if [[ -x "$candidate" ]]; then echo "$candidate"; else return 1; fi
}

browser() {
  if ! find_browser >/dev/null; then
    echo "Installing Chromium for the studio's tests (only the first time)"
    if command -v apt-get >/dev/null && [[ "$(id -u)" == 0 ]]; then
      { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null 2>&1 || true
    else
      "$PYTHON" -m playwright install chromium >/dev/null 2>&1 || true
    fi
  fi
  if CHROMIUM="$(find_browser)"; then
    export CHROMIUM
  else
    echo "warning: no Chromium, and none could be installed; the studio's browser tests will fail" >&2
  fi
}
