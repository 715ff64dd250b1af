#!/usr/bin/env bash
# Runs `kdcompile $COMMAND --ci` on the inputs of the action, which come as variables: a word of
# theirs is never read as shell. Ends with kdcompile's exit code.
set -euo pipefail

words=()
add() { # OPTION VALUE: the option, where it has a value
  if [[ -n "${2:-}" ]]; then words+=("$1" "$2"); fi
}

case "${COMMAND:-}" in
bench)
  if [[ -z "${ARTIFACT:-}" ]]; then
    echo "::error title=kdcompile::the input 'artifact' is empty: name what to measure" >&2
    exit 2
  fi
  words+=(bench "$ARTIFACT")
  add --margin "${MARGIN:-}"
  ;;
build)
  words+=(build "${SPEC:-.}")
  add --target "${TARGET:-}"
  if [[ "${REQUIRE_DEVICE:-false}" == true ]]; then words+=(--require device); fi
  ;;
*)
  echo "::error title=kdcompile::the input 'command' must be bench or build" >&2
  exit 2
  ;;
esac
add --baseline "${BASELINE:-}"
add --via "${VIA:-}"
while IFS= read -r word; do
  if [[ -n "$word" ]]; then words+=("$word"); fi
done <<<"${ARGUMENTS:-}"
folder="${FOLDER:-kdcompile-ci}"

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
