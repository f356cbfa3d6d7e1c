# Completions of upstreamproxy for fish, printed by `upstreamproxy completions fish`.

set -g __upstreamproxy_with_a_value @OPTIONS_WITH_A_VALUE@

# Prints the words of COMMAND before the cursor. Fails if there are none yet, and `--` has not been
# typed.
function __upstreamproxy_command
    set -l words (commandline -opc)
    set -l is_value false
    for at in (seq 3 (count $words))
        if $is_value
            set is_value false
        else if contains -- $words[$at] $__upstreamproxy_with_a_value
            set is_value true
        else if test $words[$at] = --
            set -e words[1..$at]
            string escape -- $words
            return 0
        else if not string match -q -- '-*' $words[$at]
            string escape -- $words[$at..-1]
            return 0
        end
    end
    return 1
end

# Whether the cursor is among the arguments of this subcommand, and for run before its COMMAND.
function __upstreamproxy_in
    set -l words (commandline -opc)
    test "$words[2]" = $argv[1]; or return 1
    test $argv[1] != run; or not __upstreamproxy_command >/dev/null
end

function __upstreamproxy_in_run
    set -l words (commandline -opc)
    test "$words[2]" = run
end

complete -c upstreamproxy -f
complete -c upstreamproxy -n __upstreamproxy_in_run \
    -a '(complete --do-complete=(string join " " -- (__upstreamproxy_command) (commandline -ct)))'
