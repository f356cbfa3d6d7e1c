# Completions of upstreamproxy for bash, printed by `upstreamproxy completions bash`.

_upstreamproxy() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local subcommand=${COMP_WORDS[1]} options='' words='' at
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W '@SUBCOMMAND_NAMES@ --help --version' -- "$current")
        return
    fi
    if [[ $subcommand == run ]]; then
        # COMMAND is the first word that is neither an option nor the value of one. `=` is a word of
        # its own here.
        for ((at = 2; at <= COMP_CWORD; at++)); do
            case ${COMP_WORDS[at]} in
            --)
                ((at++))
                break
                ;;
            @OPTIONS_WITH_A_VALUE@)
                [[ ${COMP_WORDS[at + 1]} == = ]] && ((at++))
                ((at++))
                ;;
            -*) ;;
            *) break ;;
            esac
        done
        if ((at <= COMP_CWORD)); then
            # Of the package bash-completion: the completions of COMMAND.
            if declare -F _comp_command_offset >/dev/null; then
                _comp_command_offset "$at"
            elif declare -F _command_offset >/dev/null; then
                _command_offset "$at"
            elif ((at == COMP_CWORD)); then
                mapfile -t COMPREPLY < <(compgen -c -- "$current")
            else
                compopt -o bashdefault -o default 2>/dev/null
            fi
            return
        fi
    fi
    case $subcommand in
    @SUBCOMMANDS@
    esac
    [[ $current == = ]] && current=''
    [[ $previous == = ]] && previous=${COMP_WORDS[COMP_CWORD - 2]}
    case $previous in
    @OPTIONS_WITH_WORDS@
    @OPTIONS_WITH_A_FILE@)
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
        ;;
    @OPTIONS_WITH_A_VALUE@) return ;;
    *) [[ $current == -* || -z $words ]] && words=$options ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
complete -F _upstreamproxy upstreamproxy
