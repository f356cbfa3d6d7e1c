#compdef upstreamproxy
# Completions of upstreamproxy for zsh, printed by `upstreamproxy completions zsh`.

_upstreamproxy() {
    if ((CURRENT == 2)); then
        local -a subcommands=(
            @DESCRIPTIONS@
        )
        _describe subcommand subcommands
        return
    fi
    shift words
    ((CURRENT--))
    case $words[1] in
    @SUBCOMMANDS@
    esac
}

# A file in `fpath` is the function itself; otherwise the script is sourced.
if [[ $funcstack[1] == _upstreamproxy ]]; then
    _upstreamproxy "$@"
else
    compdef _upstreamproxy upstreamproxy
fi
