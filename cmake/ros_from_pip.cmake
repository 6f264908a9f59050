# What a ROS 2 from pip needs beyond its own CMake files; include it after find_package(ament_cmake).

# rosidl looks its generators up in this variable; a ROS 2 from pip has no setup file that sets it.
if("$ENV{AMENT_PREFIX_PATH}" STREQUAL "")
  get_filename_component(ament_prefix "${ament_cmake_DIR}/../../.." ABSOLUTE)
  set(ENV{AMENT_PREFIX_PATH} "${ament_prefix}")
endif()

# The exported targets of a ROS 2 from pip name include directories of the machine that built the wheels.
function(drop_missing_include_directories)
  get_directory_property(targets IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(directories)
      set(present "")
      foreach(directory IN LISTS directories)
        if(NOT IS_ABSOLUTE "${directory}" OR EXISTS "${directory}")
          list(APPEND present "${directory}")
        endif()
      endforeach()
      set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${present}")
    endif()
  endforeach()
endfunction()
cmake_language(DEFER CALL drop_missing_include_directories)
