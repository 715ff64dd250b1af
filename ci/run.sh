#!/usr/bin/env bash
# Runs `kdcompile $COMMAND --ci` on the inputs of the action, which come as variables: a word of
# theirs is never read as shell. Ends with kdcompile's exit code.
set -euo pipefail

folder="${FOLDER:-kdcompile-ci}"
# before anything can end this script: what is uploaded must not be of an earlier run
rm -f -- "$folder"/{junit.xml,summary.md,metrics.txt,outcomes.json}

words=()
add() { # OPTION VALUE: the option, where it has a value
  if [[ -n "${2:-}" ]]; then words+=("$1" "$2"); fi
}
refuse() { # MESSAGE
  echo "::error title=kdcompile::$1" >&2
  exit 2
}
need() { # INPUT VALUE WHAT
  if [[ -z "$2" ]]; then refuse "the input '$1' is empty: name $3"; fi
}

case "${COMMAND:-}" in
bench)
  need artifact "${ARTIFACT:-}" "what to measure"
  words+=(bench "$ARTIFACT")
  add --margin "${MARGIN:-}"
  add --baseline "${BASELINE:-}"
  add --reference "${REFERENCE:-}"
  ;;
compare)
  need artifact "${ARTIFACT:-}" "what to judge"
  need reference "${REFERENCE:-}" "what it is held against"
  if [[ -n "${BASELINE:-}" ]]; then refuse "compare takes two artifacts: leave 'baseline' empty"; fi
  words+=(compare "$REFERENCE" "$ARTIFACT")
  add --margin "${MARGIN:-}"
  ;;
build)
  words+=(build "${SPEC:-.}")
  add --target "${TARGET:-}"
  if [[ "${REQUIRE_DEVICE:-false}" == true ]]; then words+=(--require device); fi
  add --baseline "${BASELINE:-}"
  ;;
*) refuse "the input 'command' must be bench, compare or build" ;;
esac
add --via "${VIA:-}"
while IFS= read -r word; do
  if [[ -n "$word" ]]; then words+=("$word"); fi
done <<<"${ARGUMENTS:-}"

code=0
kdcompile "${words[@]}" --ci --ci-folder "$folder" || code=$?

if [[ -n "${GITHUB_OUTPUT:-}" ]]; then
  verdict=""
  if [[ -f "$folder/outcomes.json" ]]; then
    verdict="$(python3 -c 'import json, sys
print(" ".join(json.load(open(sys.argv[1]))["verdict"].split()))' "$folder/outcomes.json")" || verdict=""
  fi
  printf 'exit-code=%s\nverdict=%s\n' "$code" "$verdict" >>"$GITHUB_OUTPUT"
fi
exit "$code"
